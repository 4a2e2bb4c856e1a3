"""Autoencoders: plain, denoising, and regularised by the family L_{g,h}."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from offmanifold import parameters
from offmanifold.data.inputs import InputSpec
from offmanifold.detectors.autoencoder import (
    NONE,
    WIDE,
    Autoencoder,
    check_autoencoder,
    noise_range,
    noised,
    unit_of,
)
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.configured import Settings, latent_size
from offmanifold.detectors.explanations import Cells
from offmanifold.detectors.latent import LatentMixin
from offmanifold.networks import choose
from offmanifold.probability.distances import distance, parts
from offmanifold.probability.penalties import PENALTIES, penalised_mean
from offmanifold.training.phases import Metrics, ParameterGroup, Phase, Update
from offmanifold.training.progress import Verbosity


@final
class AE(LatentMixin, OutlierDetector):
    """Autoencoder: rows that it cannot reconstruct do not belong.

    The score is minus the reconstruction error averaged over dimensions. With ``noise`` it learns to undo
    Gaussian noise (DAE); with ``error_penalty`` and ``latent_penalty`` it minimises P4's Eq. 7,
    g(mean error) + (1/d) Σ_k h(mean z_k²).

    Parameters
    ----------
    latent_dim : int or "auto"
        Size of the code. "auto": three quarters of a table's columns, 32 for images.
    network : str
        "auto" is "resmlp" for tables, "mlp" for images below 16 pixels, "strided" for others; or "fcres2",
        "conv28", "conv32", "conv32big", "conv64", "p1-grey", "p1-colour".
    hidden : sequence of int or "auto"
        Widths of dense networks. "auto": (128,) for "resmlp", (128, 128) for "mlp".
    capacity : float
        Factor on the channels of convolutional networks.
    distance : {"squared", "l1", "ssim"}
        "ssim" is 1 − SSIM, for images.
    latent : {"euclidean", "sphere"}
        Where codes live.
    noise : float, (float, float) or "auto"
        Standard deviation of the noise to be undone, in the units the network sees (standardised columns;
        pixels in [0, 1]). 0 is a plain autoencoder, 0.3 is P3's DAE. A pair is a range: each row's is drawn from it,
        uniformly on the log scale. "auto": (0.05, 3) for tables, 0 for images.
    error_penalty : {"identity", "sqrt", "log", "ratio", "huber"}
        g.
    latent_penalty : None or one of the same names
        h. Needs ``weight_decay``, or codes shrink while the decoder's weights grow.
    steps : int or "auto"
        Batches to train on, at most: held-out rows choose the weights that are kept. "auto": 500 for tables, 1 000
        for images.
    epochs : int, optional
        The same as passes over the training rows; wins over ``steps``.
    batch_size : int
    learning_rate : float or "auto"
        Peak learning rate. "auto": 2e-3, for convolutional networks 1e-3.
    optimizer : {"adam", "adamw", "rmsprop"}
    schedule : {"one-cycle", "constant", "cosine"}
    weight_decay : float
    scale : {"standard", "robust", None}
        Standardise a table's columns by the training rows, or leave them. "robust" first brings in heavy tails: a
        signed logarithm, or quantiles to a normal distribution's, of columns where held-out values are likelier so.
    false_alarm_rate : float
        Share of normal rows that :meth:`predict` may call outliers.
    calibration_fraction : float, optional
        Share of the rows kept for calibration. Default: a fifth, or what the rate takes.
    store_rows : bool
        Keep some calibration rows with the model, in its file too, so that ``diagnose`` can examine it without being
        given any. False where data must not travel.
    device : str
        "auto", "cpu", "cuda", …
    precision : {"auto", "float32", "bfloat16"}
        Arithmetic inside the networks. "auto" trains convolutions in bfloat16 where the processor gains from
        it, and scores in float32.
    random_state : int, RandomState or None
    verbose : bool or "auto"
        Progress on standard error; "auto" shows it on a terminal.

    Examples
    --------
    >>> import numpy as np
    >>> from offmanifold import AE
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(500, 1)) * [[1.0, 2.0, -1.0]] + 0.1 * rng.normal(size=(500, 3))
    >>> detector = AE(random_state=0, verbose=False).fit(X)
    >>> detector.predict([[1.0, 2.0, -1.0], [1.0, -2.0, 1.0]]).tolist()
    [1, -1]
    """

    key = "ae"
    gaps = "learned"

    def __init__(
        self,
        *,
        latent_dim: int | str = "auto",
        network: str = "auto",
        hidden: str | int | Sequence[int] = "auto",
        capacity: float = 1.0,
        distance: str = "squared",
        latent: str = "euclidean",
        noise: float | Sequence[float] | str = "auto",
        error_penalty: str = "identity",
        latent_penalty: str | None = None,
        steps: int | str = "auto",
        epochs: int | None = None,
        batch_size: int = 128,
        learning_rate: float | str = "auto",
        optimizer: str = "adamw",
        schedule: str = "one-cycle",
        weight_decay: float = 0.0,
        scale: str | None = "standard",
        false_alarm_rate: float = 0.05,
        calibration_fraction: float | None = None,
        store_rows: bool = True,
        device: str = "auto",
        precision: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: Verbosity = "auto",
    ) -> None:
        super().__init__(
            network=network,
            hidden=hidden,
            capacity=capacity,
            steps=steps,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            optimizer=optimizer,
            schedule=schedule,
            weight_decay=weight_decay,
            scale=scale,
            false_alarm_rate=false_alarm_rate,
            calibration_fraction=calibration_fraction,
            store_rows=store_rows,
            device=device,
            precision=precision,
            random_state=random_state,
            verbose=verbose,
        )
        self.latent_dim = latent_dim
        self.distance = distance
        self.latent = latent
        self.noise = noise
        self.error_penalty = error_penalty
        self.latent_penalty = latent_penalty

    @property
    def score_unit(self) -> str:
        """Minus the mean over dimensions of this."""
        return unit_of(self)

    def _settings(self, spec: InputSpec) -> Settings:
        table = spec.kind == "table"
        latent_dim = latent_size(self.latent_dim, spec)
        check_autoencoder(self.distance, self.latent, latent_dim, table=table)
        parameters.choice("error_penalty", self.error_penalty, PENALTIES)
        if self.latent_penalty is not None:
            parameters.choice("latent_penalty", self.latent_penalty, PENALTIES)
        return {
            "latent_dim": latent_dim,
            "distance": self.distance,
            "latent": self.latent,
            "noise": noise_range(self.noise, WIDE if table else NONE),
            "error_penalty": self.error_penalty,
            "latent_penalty": self.latent_penalty,
            **self._network_settings(spec, for_tables="resmlp", table_steps=500, table_rate=2e-3),
        }

    def _build(self, spec: InputSpec, settings: Settings) -> Autoencoder:
        encoder, decoder = choose.build(
            settings["network"],
            spec.shape,
            into_latent=settings["latent_dim"],
            latent_dim=settings["latent_dim"],
            hidden=settings["hidden"],
            capacity=settings["capacity"],
        )
        return Autoencoder(encoder, decoder, latent=settings["latent"], sigmoid=spec.kind == "image")

    def _phases(self, model: Autoencoder, settings: Settings) -> list[Phase]:
        noise, kind = settings["noise"], settings["distance"]
        error_penalty, latent_penalty = settings["error_penalty"], settings["latent_penalty"]

        def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
            codes = model.encode(noised(rows, noise, generator))
            errors = distance(rows, model.decode(codes), kind)
            metrics: Metrics = {"reconstruction": errors.detach().mean()}
            total = penalised_mean(errors, error_penalty)
            if latent_penalty is not None:
                penalties = penalised_mean(codes.square(), latent_penalty)
                total = total + penalties.sum(1) / rows[0].numel()
            return total, metrics

        groups = (ParameterGroup.of("encoder", model.encoder), ParameterGroup.of("decoder", model.decoder))
        update = Update(groups, loss, self._optimizer(settings))
        return [Phase("autoencoder", (update,), settings["steps"], settings["batch_size"])]

    def _energy_terms(self, model: Autoencoder, rows: Tensor) -> dict[str, Tensor]:
        return {"reconstruction": distance(rows, model.reconstruct(rows), self.settings_["distance"])}

    def _energy_cells(self, model: Autoencoder, rows: Tensor) -> Cells | None:
        kind = self.settings_["distance"]
        if kind == "ssim":
            return None
        return Cells(parts(rows, model.reconstruct(rows), kind))
