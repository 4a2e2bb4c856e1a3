"""The Wasserstein autoencoder with a maximum mean discrepancy, P3's baseline WAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from offmanifold import parameters
from offmanifold.data.inputs import InputSpec
from offmanifold.detectors.autoencoder import Autoencoder
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.configured import Settings, latent_size
from offmanifold.detectors.explanations import Cells
from offmanifold.detectors.latent import LatentMixin
from offmanifold.networks import choose
from offmanifold.probability.distances import distance, parts
from offmanifold.probability.divergences import KERNELS, mmd
from offmanifold.probability.latents import prior_sample
from offmanifold.training.phases import Metrics, ParameterGroup, Phase, Update
from offmanifold.training.progress import Verbosity


@final
class WAE(LatentMixin, OutlierDetector):
    """Wasserstein autoencoder (Tolstikhin et al., 2018): rows that it cannot reconstruct do not belong.

    An autoencoder whose codes are held to N(0, I) by the squared maximum mean discrepancy between each batch's codes
    and as many draws from the prior. The score is minus the mean squared error.

    Parameters
    ----------
    latent_dim : int or "auto"
        As for :class:`AE`.
    mmd_weight : float
        Weight of the discrepancy beside the mean squared error over dimensions. (P3 searched 0.001 … 0.1.)
    kernel : {"gaussian", "inverse-multiquadric"}
        With the median heuristic's bandwidth, from each batch.
    network, hidden, capacity, steps, epochs, batch_size, learning_rate, optimizer, schedule, weight_decay
        As for :class:`AE`.
    scale, false_alarm_rate, calibration_fraction, store_rows, device, precision, random_state, verbose
        As for :class:`AE`.

    Examples
    --------
    >>> import numpy as np
    >>> from offmanifold import WAE
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(500, 1)) * [[1.0, 2.0, -1.0]] + 0.1 * rng.normal(size=(500, 3))
    >>> detector = WAE(random_state=0, verbose=False).fit(X)
    >>> detector.predict([[1.0, 2.0, -1.0], [1.0, -2.0, 1.0]]).tolist()
    [1, -1]
    """

    key = "wae"
    gaps = "learned"

    def __init__(
        self,
        *,
        latent_dim: int | str = "auto",
        mmd_weight: float = 0.01,
        kernel: str = "gaussian",
        network: str = "auto",
        hidden: str | int | Sequence[int] = "auto",
        capacity: float = 1.0,
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
        self.mmd_weight = mmd_weight
        self.kernel = kernel

    @property
    def score_unit(self) -> str:
        """Minus the mean over dimensions of this."""
        return "mean squared error"

    @property
    def latent_prior(self) -> str:
        """Codes are meant to follow N(0, I)."""
        return "euclidean"

    def _settings(self, spec: InputSpec) -> Settings:
        return {
            "latent_dim": latent_size(self.latent_dim, spec),
            "mmd_weight": parameters.real("mmd_weight", self.mmd_weight, minimum=0),
            "kernel": parameters.choice("kernel", self.kernel, KERNELS),
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
        return Autoencoder(encoder, decoder, latent="euclidean", sigmoid=spec.kind == "image")

    def _phases(self, model: Autoencoder, settings: Settings) -> list[Phase]:
        def loss(rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
            codes = model.encode(rows)
            errors = distance(rows, model.decode(codes), "squared")
            metrics: Metrics = {"reconstruction": errors.detach().mean()}
            if len(rows) < 2:  # the discrepancy is between samples
                return errors, metrics
            drawn = prior_sample(len(rows), codes.shape[1], "euclidean", generator, rows.device)
            discrepancy = mmd(codes, drawn, kernel=settings["kernel"])
            return errors + settings["mmd_weight"] * discrepancy, metrics | {"mmd": discrepancy.detach()}

        groups = (ParameterGroup.of("encoder", model.encoder), ParameterGroup.of("decoder", model.decoder))
        return [
            Phase("wae", (Update(groups, loss, self._optimizer(settings)),), settings["steps"], settings["batch_size"])
        ]

    def _energy_terms(self, model: Autoencoder, rows: Tensor) -> dict[str, Tensor]:
        return {"reconstruction": distance(rows, model.reconstruct(rows), "squared")}

    def _energy_cells(self, model: Autoencoder, rows: Tensor) -> Cells | None:
        return Cells(parts(rows, model.reconstruct(rows), "squared"))
