"""A feed-forward energy-based model: P3's baseline IGEBM (Du & Mordatch, 2019)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from offmanifold import parameters
from offmanifold.data.inputs import InputSpec
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.chains import (
    SAMPLING_FACTOR,
    Chain,
    Range,
    chain_bounds,
    chain_settings,
    check_replay,
    families_to_watch,
    from_data_or_replay,
    noise_within,
    settle_bounds,
    size_of_network,
    warn_of_bounds,
)
from offmanifold.detectors.configured import Settings
from offmanifold.detectors.contrastive import contrastive_phase, untold
from offmanifold.networks import choose
from offmanifold.networks.network import Network
from offmanifold.sampling import langevin
from offmanifold.sampling.chain import Kernel, Space
from offmanifold.sampling.starts import FromData, Start
from offmanifold.training.phases import ParameterGroup, Phase
from offmanifold.training.precision import ordinary
from offmanifold.training.progress import Verbosity

NEGATIVES = ("pcd-restart", "pcd", "cd")
# Encoders that do not end in a plain linear layer, and how many outputs of theirs one is put on: Conv32 ends in a ReLU,
# which with one channel can be shut for every image, Conv32Big's last layer is normalised.
READ_BY_A_LINEAR_LAYER = {"conv32": 64, "conv32big": 64}


class EnergyNetwork(nn.Module):
    """E(x): an encoder that ends in one number, with spectral normalisation in every layer but the last.

    With the last layer's size free the network may be steep where exp(−E) must be narrow, as it must on tables; the
    penalty on squared energies holds it.

    Parameters
    ----------
    body : Network
        ``(n, *shape) → (n, features)``. With one feature that is the energy, and the body's last layer is free.
    features : int
        With more a linear layer reads them, and is free.
    """

    def __init__(self, body: Network, features: int) -> None:
        super().__init__()
        layers = [layer for layer in body.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        for layer in layers[:-1] if features == 1 else layers:
            if not nn.utils.parametrize.is_parametrized(layer):
                spectral_norm(layer)
        self.body = body
        self.head = nn.Identity() if features == 1 else nn.Linear(features, 1)

    def energy(self, rows: Tensor) -> Tensor:
        """Return E(x): ``(n,)``."""
        energies: Tensor = self.head(self.body(rows))
        return energies.flatten()


@final
class IGEBM(OutlierDetector):
    """Energy-based model: a network's output is the energy, and chains on x find its samples (P3's baseline).

    The score is minus the energy: log p(x) up to a constant and a factor, for the chains of training sample at the
    temperature σ²/(2λ) of their step size λ and noise σ. Training is watched as in :class:`~offmanifold.NAE`.

    It is here for comparison. On a table of two clusters it learns little more than which rows lie far from the middle
    of all, and calls those between the clusters the most normal (AUROC .23 on ``TwoBoxes``).

    Parameters
    ----------
    negatives : {"pcd-restart", "pcd", "cd"}
        Chains start at ends of many earlier ones with restarts from noise, where the batch before's ended, or at the
        data.
    network : str
        As in :class:`~offmanifold.AE`, but "auto" is "mlp" for tables, and for images of their size P3's Conv28, Conv32
        or Conv64. The encoder alone is used, with one output.
    hidden
        As in :class:`~offmanifold.AE`.
    capacity : float
        Factor on the channels of convolutional networks.
    visible_chain : (int, float, float) or "auto"
        Steps, step size λ and noise σ. "auto": (60, 10, 0.005) for images, as published; (30, 0.05, 0.05) for tables.
    bounds : (float, float) or "auto"
        Where x may go. "auto": [0, 1] for images; for tables ±4, or the largest absolute value among the training rows
        where that is more.
    replay_size : int
    restart : float
        Share of the chains that start from uniform noise, with "pcd-restart".
    energy_penalty : float
        α on the squared energies of data and samples.
    average : float
        Factor of the weights' running average, taken once a step; 0 keeps raw weights.
    watch : str, sequence of str, "auto" or None
        Families of synthetic outliers that judge training, as in :class:`~offmanifold.NAE`.
    steps : int or "auto"
        Of training, at most, each with a run of the chains. "auto" is 400 for tables, 1 000 for images.
    learning_rate : float or "auto"
        Peak learning rate. "auto" is 1e-3, for images with dense networks 2e-3.
    epochs, batch_size, optimizer, schedule, weight_decay, scale, false_alarm_rate, calibration_fraction, store_rows, \
device, precision, random_state, verbose
        As in :class:`~offmanifold.AE`.

    Examples
    --------
    >>> import numpy as np
    >>> from offmanifold import IGEBM
    >>> X = np.random.default_rng(0).normal(size=(500, 2))
    >>> detector = IGEBM(random_state=0, verbose=False).fit(X)
    >>> detector.predict([[0.0, 0.0], [9.0, -9.0]]).tolist()
    [1, -1]
    """

    key = "igebm"

    def __init__(
        self,
        *,
        negatives: str = "pcd-restart",
        network: str = "auto",
        hidden: str | int | Sequence[int] = "auto",
        capacity: float = 0.5,
        visible_chain: Sequence[float] | str = "auto",
        bounds: Range | str = "auto",
        replay_size: int = 10_000,
        restart: float = 0.05,
        energy_penalty: float = 1.0,
        average: float = 0.985,
        watch: Sequence[str] | str | None = "auto",
        steps: int | str = "auto",
        epochs: int | None = None,
        batch_size: int = 128,
        learning_rate: float | str = "auto",
        optimizer: str = "adam",
        schedule: str = "cosine",
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
        self.negatives = negatives
        self.visible_chain = visible_chain
        self.bounds = bounds
        self.replay_size = replay_size
        self.restart = restart
        self.energy_penalty = energy_penalty
        self.average = average
        self.watch = watch

    @property
    def score_unit(self) -> str:
        """Minus the energy."""
        return "energy"

    def _settings(self, spec: InputSpec) -> Settings:
        table = spec.kind == "table"
        parameters.choice("negatives", self.negatives, NEGATIVES)
        chain = self.visible_chain
        if isinstance(chain, str):
            parameters.choice("visible_chain", chain, ("auto",))
            chain = (30, 0.05, 0.05) if table else (60, 10.0, 0.005)
        return {
            "negatives": self.negatives,
            "visible_chain": chain_settings("visible_chain", chain, fewest=1),
            "clip": None if table else 0.01,
            "bounds": chain_bounds(self.bounds, table),
            "replay_size": parameters.integer("replay_size", self.replay_size, minimum=int(self.negatives != "cd")),
            "restart": parameters.real("restart", self.restart, minimum=0, maximum=1),
            "energy_penalty": parameters.real("energy_penalty", self.energy_penalty, minimum=0),
            "average": parameters.real("average", self.average, minimum=0, below=1),
            "watch": families_to_watch(self.watch, spec.kind, colour=spec.colour),
            **self._network_settings(
                spec, for_tables="mlp", table_steps=400, table_rate=1e-3, for_images=size_of_network
            ),
        }

    def _settle(self, rows: Tensor, settings: Settings) -> None:
        settle_bounds(rows, settings)
        check_replay(rows, settings)

    def _build(self, spec: InputSpec, settings: Settings) -> EnergyNetwork:
        features = READ_BY_A_LINEAR_LAYER.get(settings["network"], 1)
        encoder, _ = choose.build(
            settings["network"],
            spec.shape,
            into_latent=features,
            latent_dim=1,
            hidden=settings["hidden"],
            capacity=settings["capacity"],
        )
        return EnergyNetwork(encoder, features)

    def _phases(self, model: EnergyNetwork, settings: Settings) -> list[Phase]:
        return [
            contrastive_phase(
                "contrast",
                energy=model.energy,
                chain=self._chain(
                    model, settings, from_data_or_replay(settings, self._network_spec.shape, self._device)
                ),
                groups=(ParameterGroup.of("energy", model),),
                optimizer=self._optimizer(settings),
                steps=settings["steps"],
                batch_size=settings["batch_size"],
                average=settings["average"],
                watch=settings["watch"],
                negative_penalty=settings["energy_penalty"],
                positive_penalty=settings["energy_penalty"],
            )
        ]

    @staticmethod
    def _chain(model: EnergyNetwork, settings: Settings, start: Start, factor: int = 1) -> Chain[Start]:
        steps, step_size, noise = settings["visible_chain"]
        kernel = Kernel(step_size, noise, clip=settings["clip"], space=Space(*settings["bounds"]))
        return Chain(start, langevin.step, kernel, factor * steps, model)

    def _energy_terms(self, model: EnergyNetwork, rows: Tensor) -> dict[str, Tensor]:
        return {"energy": model.energy(rows)}

    def training_remarks(self) -> list[tuple[str, str]]:
        """Say where synthetic outliers are hardly told."""
        told = untold(self.training_summary(), self.rows_["stopping"]) if self.spec_.kind == "image" else None
        return [] if told is None else [(told, "Make steps larger, or choose another network or detector.")]

    def _warn_about_training(self, normal: Tensor) -> None:
        warn_of_bounds(self.history_, self.settings_, normal)

    @ordinary()
    def sample(self, n: int, *, random_state: int | np.random.RandomState | None = None) -> Any:
        """Draw ``n`` rows by chains from uniform noise, eight times as long as in training; units and layout of X.

        Pixels go from 0 to 1.
        """
        check_is_fitted(self, "module_")
        parameters.integer("n", n)
        generator = self._generator(random_state)
        noise, shape = noise_within(self.settings_["bounds"]), self._network_spec.shape

        def begin(k: int) -> Tensor:
            return noise(generator, torch.empty(k, *shape, device=self._device))

        chain = self._chain(self.module_, self.settings_, FromData(), SAMPLING_FACTOR)
        return self._restore(chain.samples(generator, n, begin, self.module_.energy))
