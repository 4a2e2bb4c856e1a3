"""What training consists of: phases of updates, as plain values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

# By name; what costs something may be a function, which is called at checks alone.
Metrics = dict[str, Tensor | Callable[[], Tensor]]
# (rows, generator) → (per-row loss, metrics). Unreduced: the loop takes the mean.
Loss = Callable[[Tensor, torch.Generator], tuple[Tensor, Metrics]]
# (held-out rows, generator) → (what decides which weights are kept, low = better; what else to record)
Judge = Callable[[Tensor, torch.Generator], tuple[float, dict[str, float]]]


class Unfit(Exception):
    """Raised by a judge that finds the weights of no use, saying why: the run goes back to the best ones."""


Schedule = Literal["constant", "one-cycle", "cosine"]
SCHEDULES = ("constant", "one-cycle", "cosine")
OPTIMIZERS = ("adam", "adamw", "rmsprop")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How parameters move.

    Attributes
    ----------
    name : {"adam", "adamw", "rmsprop"}
    learning_rate : float
        The peak of the schedule.
    schedule : {"constant", "one-cycle", "cosine"}
        One-cycle rises linearly over the first 30 % and falls as a cosine; cosine falls from the start.
    weight_decay : float
    """

    learning_rate: float
    name: str = "adam"
    schedule: Schedule = "constant"
    weight_decay: float = 0.0

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate at ``step`` of ``steps``: a function of both, with no memory."""
        done = step / max(1, steps)
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
        if done < 0.3:
            return self.learning_rate * (0.04 + 0.96 * done / 0.3)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (done - 0.3) / 0.7))

    def build(self, groups: Sequence[ParameterGroup]) -> torch.optim.Optimizer:
        """Return PyTorch's optimiser over ``groups``."""
        kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
            "rmsprop": torch.optim.RMSprop,
        }
        options: dict[str, object] = {"lr": self.learning_rate}
        if self.name != "rmsprop":
            options["fused"] = True  # one kernel for all tensors, on the CPU too
        decay = self.weight_decay
        own = [{"params": list(group.parameters), "weight_decay": decay if group.decays else 0.0} for group in groups]
        return kinds[self.name](own, **options)


@dataclasses.dataclass(frozen=True)
class ParameterGroup:
    """Parameters under one name in the gradient statistics.

    Attributes
    ----------
    name : str
    parameters : tuple of Parameter
    rate_scale : float
        Factor on their learning rate.
    decays : bool
        Whether the optimiser's weight decay pulls them to 0: not what is no weight, such as a logarithm.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    rate_scale: float = 1.0
    decays: bool = True

    @classmethod
    def of(
        cls, name: str, module: nn.Module | Iterable[nn.Parameter], rate_scale: float = 1.0, *, decays: bool = True
    ) -> ParameterGroup:
        """Take a module's trainable parameters."""
        parameters = module.parameters() if isinstance(module, nn.Module) else module
        return cls(name, tuple(p for p in parameters if p.requires_grad), rate_scale, decays)


@dataclasses.dataclass(frozen=True)
class Update:
    """One optimiser step: the mean of ``loss`` over the batch moves ``groups`` and nothing else.

    Attributes
    ----------
    prepare : callable, optional
        Called once a step, before the repetitions, with the first one's rows and the generator: for what all of them
        use, such as samples. Returns metrics.
    repeats : int
        How often the update is repeated within a step, each time on a fresh batch.
    repeat_until : callable, optional
        Given the losses of this step's repetitions so far, say whether it is enough (lagging inference); then
        ``repeats`` is how often at most.
    """

    groups: tuple[ParameterGroup, ...]
    loss: Loss
    optimizer: Optimizer
    prepare: Callable[[Tensor, torch.Generator], Metrics] | None = None
    repeats: int = 1
    repeat_until: Callable[[Sequence[float]], bool] | None = None


@dataclasses.dataclass(frozen=True)
class Phase:
    """A named stretch of training.

    Attributes
    ----------
    name : str
    updates : tuple of Update
        Run in order on each batch.
    steps : int
        Batches, at most.
    batch_size : int
        Rows a batch (all rows, where there are fewer).
    judge : Judge, optional
        Sees the held-out rows, with the same noise each time, and decides which weights are kept. Default: the mean of
        the first update's loss.
    keep : {"best", "last"}
        Whether the judgement chooses the weights (of equals the later), or the last ones are kept whatever it says.
    patience : float
        Stop after so many steps without weights that were kept, counted anew where the run went back.
    checks : int
        How often in the phase to check: judgement, divergence, statistics, best weights.
    average : float
        Factor of an exponential moving average of the weights, which then is what is judged and kept; 0 keeps the raw
        ones. It is taken once a step, after all repetitions. Early in the phase the factor is smaller, so that the
        start is forgotten.
    rollbacks : int
        How often a run that diverges goes back to the best weights and on at half the learning rate before it stops.
    memory : mapping of tensors
        What the losses change in place beside the weights (replay buffers): part of checkpoints, not of the model.
    remedy : str
        What to do where it diverges, in the names of the user's parameters.
    """

    name: str
    updates: tuple[Update, ...]
    steps: int
    batch_size: int
    judge: Judge | None = None
    keep: Literal["best", "last"] = "best"
    patience: float = math.inf
    checks: int = 20
    average: float = 0.0
    rollbacks: int = 0
    memory: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    remedy: str = "Try a smaller learning_rate, or precision='float32'."

    @property
    def check_every(self) -> int:
        """Steps between two checks."""
        return max(1, self.steps // self.checks)
