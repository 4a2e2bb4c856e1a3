"""The hyper-parameters that every detector has: stored, checked, and every "auto" resolved."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
from sklearn.base import BaseEstimator
from torch import nn

from offmanifold import calibration, parameters
from offmanifold.data.inputs import InputSpec
from offmanifold.networks import choose
from offmanifold.training.phases import OPTIMIZERS, SCHEDULES, Optimizer
from offmanifold.training.precision import PRECISIONS
from offmanifold.training.progress import Verbosity
from offmanifold.training.threads import worth_having

Settings: TypeAlias = dict[str, Any]


def latent_size(latent_dim: int | str, spec: InputSpec, *, for_images: int = 32) -> int:
    """Check ``latent_dim``; "auto" is three quarters of a table's columns, and ``for_images``."""
    if latent_dim == "auto":
        return for_images if spec.kind == "image" else max(2, math.ceil(0.75 * spec.dimensions))
    return parameters.integer("latent_dim", latent_dim, words=("auto",))


class Configured(BaseEstimator, abc.ABC):  # type: ignore[misc]
    """Stores what is common to all detectors; see :class:`~offmanifold.AE` for what each parameter means."""

    # What ``network`` may be, beside "auto".
    networks: ClassVar[tuple[str, ...]] = choose.NETWORKS

    def __init__(
        self,
        *,
        network: str,
        hidden: str | int | Sequence[int],
        capacity: float | str,
        steps: str | int,
        epochs: int | None,
        batch_size: int,
        learning_rate: str | float,
        optimizer: str,
        schedule: str,
        weight_decay: float,
        scale: str | None,
        false_alarm_rate: float,
        calibration_fraction: float | None,
        store_rows: bool,
        device: str,
        precision: str,
        random_state: int | np.random.RandomState | None,
        verbose: Verbosity,
    ) -> None:
        self.network = network
        self.hidden = hidden
        self.capacity = capacity
        self.steps = steps
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.optimizer = optimizer
        self.schedule = schedule
        self.weight_decay = weight_decay
        self.scale = scale
        self.false_alarm_rate = false_alarm_rate
        self.calibration_fraction = calibration_fraction
        self.store_rows = store_rows
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    @abc.abstractmethod
    def _settings(self, spec: InputSpec) -> Settings:
        """Check the detector's own hyper-parameters and return them with every "auto" resolved."""

    def _check_common(self) -> None:
        parameters.choice("network", self.network, ("auto", *self.networks))
        if self.steps != "auto":
            parameters.integer("steps", self.steps, words=("auto",))
        if self.epochs is not None:
            parameters.integer("epochs", self.epochs)
        parameters.integer("batch_size", self.batch_size)
        if self.learning_rate != "auto":
            parameters.real("learning_rate", self.learning_rate, above=0, words=("auto",))
        parameters.real("weight_decay", self.weight_decay, minimum=0)
        if self.scale is not None:
            parameters.choice("scale", self.scale, ("standard", "robust"))
        parameters.real("false_alarm_rate", self.false_alarm_rate, above=0, below=1)
        if self.calibration_fraction is not None:
            parameters.real("calibration_fraction", self.calibration_fraction, above=0, below=1)
        if not isinstance(self.store_rows, bool | np.bool_):
            raise parameters.InvalidParameter(f"store_rows must be True or False; got {self.store_rows!r}.")
        parameters.choice("precision", self.precision, PRECISIONS)
        if not isinstance(self.device, str):
            raise parameters.InvalidParameter(
                f"device must be 'auto', 'cpu', 'cuda' or another torch device name; got {self.device!r}."
            )
        if self.verbose not in (True, False, "auto"):
            raise parameters.InvalidParameter(f"verbose must be True, False or 'auto'; got {self.verbose!r}.")

    def _resolved(self, spec: InputSpec, rows: int) -> Settings:
        """Add the common settings, every "auto" resolved, to the detector's own."""
        table = spec.kind == "table"
        own = self._settings(spec)
        steps, rate = own.pop("default_steps"), own.pop("default_rate")
        # A detector may say what "auto" means for these.
        capacity = parameters.real("capacity", own.pop("capacity", self.capacity), above=0)
        schedule = parameters.choice("schedule", own.pop("schedule", self.schedule), SCHEDULES)
        optimizer = parameters.choice("optimizer", own.pop("optimizer", self.optimizer), OPTIMIZERS)
        batches_a_step = own.pop("batches_a_step", 1)
        if self.epochs is not None:
            kept = calibration.split_sizes(rows, self.false_alarm_rate, self.calibration_fraction)
            training = rows - sum(kept)
            batches = math.ceil(self.epochs * training / min(self.batch_size, training))
            steps = math.ceil(batches / batches_a_step)
        elif self.steps != "auto":
            steps = int(self.steps)
        return {
            **own,
            "capacity": capacity,
            "schedule": schedule,
            "steps": steps,
            "batch_size": int(self.batch_size),
            "learning_rate": rate if self.learning_rate == "auto" else float(self.learning_rate),
            "optimizer": optimizer,
            "weight_decay": float(self.weight_decay),
            "scale": self.scale if table else None,
            "store_rows": bool(self.store_rows),
            "precision": self.precision,
        }

    def _network_settings(
        self,
        spec: InputSpec,
        *,
        for_tables: str,
        table_steps: int,
        table_rate: float,
        image_steps: int = 1000,
        image_rate: float | None = None,
        for_images: Callable[[tuple[int, ...]], str] = choose.for_images,
    ) -> Settings:
        """Resolve what depends on the network alone; the arguments are what "auto" means."""
        network = self.network
        if network == "auto":
            network = for_tables if spec.kind == "table" else for_images(spec.shape)
        widths = {"resmlp": (128,), "mlp": (128, 128), "fcres2": (256, 1024)}.get(network, ())
        hidden = self.hidden
        hidden = widths if isinstance(hidden, str) and hidden == "auto" else parameters.sizes("hidden", hidden)
        dense = network in choose.DENSE
        return {
            "network": network,
            "hidden": list(hidden),
            "default_steps": table_steps if spec.kind == "table" else image_steps,
            "default_rate": table_rate if spec.kind == "table" else image_rate or (2e-3 if dense else 1e-3),
        }

    def _optimizer(self, settings: Settings) -> Optimizer:
        return Optimizer(
            settings["learning_rate"], settings["optimizer"], settings["schedule"], settings["weight_decay"]
        )

    @staticmethod
    def _threads(model: nn.Module, settings: Settings) -> int | None:
        """Return the limit of threads for training: one for small dense networks."""
        if settings["network"] not in choose.DENSE:
            return None
        return worth_having(settings["batch_size"] * sum(p.numel() for p in model.parameters()))
