"""Chains as detectors use them: how negatives and samples are drawn, and the hyper-parameters that say so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from offmanifold import parameters
from offmanifold.data import outliers
from offmanifold.networks import choose
from offmanifold.probability.missing import nothing_missing
from offmanifold.sampling.chain import Energy, Kernel, Step, run
from offmanifold.sampling.starts import Fresh, Start
from offmanifold.training.phases import Metrics

Range = tuple[float, float]
# P3, appendix D.3: the chain for new samples is so many times as long as in training.
SAMPLING_FACTOR = 8
# Samples drawn at a time.
PART = 256
AnyStart = TypeVar("AnyStart", bound=Start)


@dataclasses.dataclass
class Chain(Generic[AnyStart]):
    """How negative samples are drawn.

    Attributes
    ----------
    start : Start
    step : callable
        Adjusted or not.
    kernel : Kernel
    steps : int
        0 leaves the starts as they are.
    """

    start: AnyStart
    step: Step
    kernel: Kernel
    steps: int

    def negatives(self, generator: torch.Generator, rows: Tensor, energy: Energy) -> tuple[Tensor, Metrics]:
        """Return samples of the model ``(n, *shape)``, as many as there are rows, and how the chains went."""
        with nothing_missing():  # nor does anything wait for the device to see whether it is so
            begun, told = self.start.begin(generator, rows)
            begun, metrics = self.kernel.space.enter(begun), Metrics(told)
            if not self.steps:
                return begun, metrics
            state, info = run(self.step, generator, begun, energy, self.kernel, self.steps)
        self.start.end(state.position)
        metrics |= {"drift": info.drift.mean(), "noise": info.noise.mean(), "acceptance": info.accepted.mean()}
        return state.position, metrics

    def samples(self, generator: torch.Generator, n: int, begin: Callable[[int], Tensor], energy: Energy) -> Tensor:
        """Return ``(n, *shape)``, drawn a part at a time; ``begin(k)`` is what :attr:`start` is given for k of them."""
        parts = (min(PART, n - done) for done in range(0, n, PART))
        return torch.cat([self.negatives(generator, begin(k), energy)[0] for k in parts])


def chain_settings(argument: str, value: Any, *, fewest: int) -> list[float]:
    """Check (steps, step size, noise)."""
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 3:
        raise parameters.InvalidParameter(f"{argument} must be (steps, step size, noise) or 'auto'; got {value!r}.")
    steps, step_size, noise = value
    return [
        parameters.integer(f"{argument}[0]", steps, minimum=fewest),
        parameters.real(f"{argument}[1]", step_size, above=0),
        parameters.real(f"{argument}[2]", noise, minimum=0),
    ]


def chain_bounds(bounds: Range | str, table: bool) -> list[float] | None:
    """Check ``bounds``; None is for :func:`settle_bounds` to fill in."""
    if isinstance(bounds, str):
        parameters.choice("bounds", bounds, ("auto",))
        return None if table else [0.0, 1.0]
    if not isinstance(bounds, Iterable) or len(bounds) != 2:
        raise parameters.InvalidParameter(f"bounds must be (low, high) or 'auto'; got {bounds!r}.")
    low, high = (parameters.real(f"bounds[{i}]", value) for i, value in enumerate(bounds))
    if not low < high:
        raise parameters.InvalidParameter(f"bounds must be (low, high) with low < high; got {bounds!r}.")
    return [low, high]


def settle_bounds(rows: Tensor, settings: dict[str, Any]) -> None:
    """Where ``bounds`` is "auto" for a table: the range of the prepared training rows, at least ±4."""
    if settings["bounds"] is None:
        widest = max(4.0, float(rows.abs().max()))
        settings["bounds"] = [-widest, widest]


def families_to_watch(watch: Sequence[str] | str | None, kind: str) -> list[str]:
    """Check ``watch``; "auto" is :data:`~offmanifold.data.outliers.WATCHED`, none keeps the last weights."""
    known = outliers.families(kind)
    if watch is None:
        return []
    if isinstance(watch, str):
        if parameters.choice("watch", watch, ("auto", *known)) != "auto":
            return [watch]
        return [maker.__name__ for maker in outliers.WATCHED[kind]]
    if not isinstance(watch, Iterable):
        raise parameters.InvalidParameter(f"watch must be 'auto', names of families, or None; got {watch!r}.")
    return [parameters.choice("watch", family, known) for family in watch]


def size_of_network(shape: tuple[int, ...]) -> str:
    """Return P3's network for images of 28, 32 or 64 pixels, or the general one."""
    by_size = {(28, 28): "conv28", (32, 32): "conv32", (64, 64): "conv64"}
    return by_size.get((shape[1], shape[2]), choose.for_images(shape))


def noise_within(bounds: Sequence[float], shape: tuple[int, ...], device: torch.device) -> Fresh:
    """Return what draws uniform noise ``(n, *shape)`` within the bounds."""

    def noise(generator: torch.Generator, n: int) -> Tensor:
        return torch.empty(n, *shape, device=device).uniform_(*bounds, generator=generator)

    return noise


def replay_size(size: int, batch_size: int, *, minimum: int) -> int:
    """Check ``replay_size``: a batch's chains must fit, or it is 0, where that is allowed."""
    parameters.integer("replay_size", size, minimum=minimum)
    if 0 < size < batch_size:
        raise parameters.InvalidParameter(
            f"replay_size={size} does not hold the chains of one batch. Use at least batch_size={batch_size}, "
            "or smaller batches."
        )
    return int(size)
