"""Chains as detectors use them: how negatives and samples are drawn, and the hyper-parameters that say so."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from offmanifold import parameters
from offmanifold.data import outliers
from offmanifold.networks import choose
from offmanifold.networks.network import steady
from offmanifold.probability.missing import nothing_missing
from offmanifold.sampling import metropolis
from offmanifold.sampling.chain import Energy, Kernel, Space, Step, run
from offmanifold.sampling.replay import Replay
from offmanifold.sampling.starts import Fresh, FromData, Persistent, Start
from offmanifold.training.phases import Metrics

Range = tuple[float, float]
# P3, appendix D.3: the chain for new samples is so many times as long as in training.
SAMPLING_FACTOR = 8
# Samples drawn at a time.
PART = 256
# Share of the training rows that may lie outside of given bounds.
MOST_OUTSIDE = 0.5
# Share of the sampled values on the bounds from which on the chains are no use; where the data's own values are there,
# as the black of digits is, this share of the others.
MOST_AT_BOUNDS = 0.5
# Values of a row on the bounds from which on one adjusted move in a thousand stays inside at best.
MOST_ON_BOUNDS = 10
# Share of adjusted moves that are accepted, below which chains stand still.
LOWEST_ACCEPTANCE = 0.05
# Share of the last samples below the held-out rows' median energy from which on holes are left: where normalisation
# worked it was 0 to .55, where it did nothing 1 (docs/studies/normalised-autoencoder.md, CIFAR-10).
MOST_BELOW = 0.95
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
    module : Module
        Whose energy it is.
    """

    start: AnyStart
    step: Step
    kernel: Kernel
    steps: int
    module: nn.Module

    def negatives(self, generator: torch.Generator, rows: Tensor, energy: Energy) -> tuple[Tensor, Metrics]:
        """Return samples of the model ``(n, *shape)``, as many as there are rows, and how the chains went."""
        # Nor does anything wait for the device to see whether something is missing.
        with nothing_missing(), steady(self.module):
            begun, told = self.start.begin(generator, rows)
            metrics = Metrics(told)
            if not self.steps:
                return self.kernel.space.enter(begun), metrics
            state, info = run(self.step, generator, begun, energy, self.kernel, self.steps)
        self.start.end(state.position)
        ends = state.position
        metrics |= {"drift": info.drift.mean(), "noise": info.noise.mean(), "acceptance": info.accepted.mean()}
        if self.kernel.space.bounded:
            metrics["at_bounds"] = lambda: self.kernel.space.at_bounds(ends)
        return ends, metrics

    def samples(self, generator: torch.Generator, n: int, begin: Callable[[int], Tensor], energy: Energy) -> Tensor:
        """Return ``(n, *shape)``, drawn a part at a time; ``begin(k)`` is what :attr:`start` is given for k of them."""
        parts = (min(PART, n - done) for done in range(0, n, PART))
        return torch.cat([self.negatives(generator, begin(k), energy)[0] for k in parts])


def chain_settings(argument: str, value: Any, *, fewest: int) -> list[float]:
    """Check (steps, step size, noise)."""
    values = [] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    if len(values) != 3:
        raise parameters.InvalidParameter(
            f"{argument} must be (steps, step size, noise), such as (15, 0.1, 0.05), or 'auto'; got {value!r}."
        )
    steps, step_size, noise = values
    if isinstance(steps, float) and steps.is_integer():  # of an array
        steps = int(steps)
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
    pair = list(bounds) if isinstance(bounds, Iterable) else []
    if len(pair) != 2:
        raise parameters.InvalidParameter(f"bounds must be (low, high) or 'auto'; got {bounds!r}.")
    low, high = (parameters.real(f"bounds[{i}]", value) for i, value in enumerate(pair))
    if not low < high:
        raise parameters.InvalidParameter(f"bounds must be (low, high) with low < high; got {tuple(pair)!r}.")
    if not table and (low < -1 or high > 2):
        raise parameters.InvalidParameter(
            f"bounds are in the units the network sees, and there pixels go from 0 to 1; got {tuple(pair)!r}."
        )
    return [low, high]


def settle_bounds(rows: Tensor, settings: dict[str, Any]) -> None:
    """Where ``bounds`` is "auto" for a table: ± the largest absolute value of the prepared training rows, at least ±4.

    Raises
    ------
    InvalidParameter
        For bounds that half of the rows lie outside of: no chain could end where they are.
    """
    if settings["bounds"] is None:
        widest = max(4.0, float(rows.abs().max()))
        settings["bounds"] = [-widest, widest]
    low, high = settings["bounds"]
    outside = float(((rows < low) | (rows > high)).flatten(1).any(1).double().mean())
    if outside > MOST_OUTSIDE:
        raise parameters.InvalidParameter(
            f"bounds={(low, high)} leave {outside:.0%} of the training rows outside. As the network sees them "
            f"(standardised, or pixels from 0 to 1) their values go from {float(rows.min()):.3g} to "
            f"{float(rows.max()):.3g}: use wider bounds, or 'auto'."
        )


def latest(history: Sequence[dict[str, Any]], name: str, default: float) -> float:
    """Return the last value recorded under ``name``: after rolling back a record has none."""
    return float(next((record[name] for record in reversed(history) if name in record), default))


def warn_of_bounds(history: Sequence[dict[str, Any]], settings: dict[str, Any], rows: Tensor) -> None:
    """Say so where the last samples lay on the bounds far more than ``rows`` of data: nothing is learned from those."""
    own = float(Space(*settings["bounds"]).at_bounds(rows))
    share = latest(history, "at_bounds", 0.0)
    if share > own + MOST_AT_BOUNDS * (1 - own):
        step_size = settings["visible_chain"][1]
        warnings.warn(
            f"{share:.0%} of the values that the chains ended at are on the bounds: their steps throw them out of the "
            f"data. Make the step size in visible_chain, {step_size:.3g}, smaller.",
            UserWarning,
            stacklevel=4,
        )


def accepted(history: Sequence[dict[str, Any]]) -> bool:
    """Say whether chains moved: unadjusted ones always do."""
    return latest(history, "acceptance", 1.0) >= LOWEST_ACCEPTANCE


def warn_of_acceptance(history: Sequence[dict[str, Any]], advice: Callable[[], str]) -> None:
    """Say so where adjusted chains hardly moved, with advice."""
    if not accepted(history):
        warnings.warn(
            f"The adjusted chains accepted {latest(history, 'acceptance', 1.0):.1%} of their moves, so they hardly "
            f"moved. {advice()}",
            UserWarning,
            stacklevel=4,
        )


def holes(history: Sequence[dict[str, Any]]) -> str | None:
    """Say so where, by the weights that were kept, nearly all samples are more normal than the data."""
    share = latest([record for record in history if record.get("kept")], "negatives_below_median", 0.5)
    if share <= MOST_BELOW:
        return None
    return (
        f"{share:.0%} of the model's samples have a lower energy than half of the held-out rows: what it makes up is "
        "more normal to it than what it learned from, and so may outliers be."
    )


def accepted_half(chain: Chain[Any], generator: torch.Generator, rows: Tensor, energy: Energy) -> str:
    """Advise a step size for adjusted chains by trying some from the chain's starts; ``rows`` as in ``begin``."""
    begun, _ = chain.start.begin(generator, rows)
    try:
        size = metropolis.suggest_step_size(generator, begun, energy, chain.kernel, steps=chain.steps)
    except ValueError as error:
        return str(error)
    advised = f"({chain.steps}, {size:.3g}, {math.sqrt(2 * size):.3g})"
    return f"Try visible_chain={advised}: with these weights about half are accepted then."


def families_to_watch(watch: Sequence[str] | str | None, kind: str, *, colour: bool = False) -> list[str]:
    """Check ``watch``; none keeps the last weights.

    "auto" is :data:`~offmanifold.data.outliers.WATCHED`, for images in ``colour`` also
    :data:`~offmanifold.data.outliers.SMOOTH`.
    """
    known = outliers.families(kind)
    if watch is None:
        return []
    if isinstance(watch, str):
        if watch == "auto":
            makers = outliers.WATCHED[kind] + (outliers.SMOOTH if colour else ())
            return [maker.__name__ for maker in makers]
        watch = [watch]
    if not isinstance(watch, Iterable):
        raise parameters.InvalidParameter(f"watch must be 'auto', names of families, or None; got {watch!r}.")
    watch = list(watch)
    other = "table" if kind == "image" else "image"
    foreign = outliers.families(other).keys() - known.keys()
    for family in watch:
        if isinstance(family, str) and family in foreign:
            raise parameters.InvalidParameter(
                f"watch={family!r} is for {other}s; the data are {kind}s. For these: {', '.join(known)}."
            )
    return [parameters.choice("watch", family, known) for family in watch]


def size_of_network(shape: tuple[int, ...]) -> str:
    """Return P3's network for images of 28, 32 or 64 pixels, or the general one."""
    by_size = {(28, 28): "conv28", (32, 32): "conv32", (64, 64): "conv64"}
    return by_size.get((shape[1], shape[2]), choose.for_images(shape))


def noise_within(bounds: Sequence[float]) -> Fresh:
    """Return what draws uniform noise like rows, within the bounds."""

    def noise(generator: torch.Generator, rows: Tensor) -> Tensor:
        return rows.new_empty(rows.shape).uniform_(*bounds, generator=generator)

    return noise


def from_data_or_replay(settings: dict[str, Any], shape: tuple[int, ...], device: torch.device) -> Start:
    """Return the start of ``negatives`` "cd", "pcd" and "pcd-restart", which restarts from noise within the bounds."""
    if settings["negatives"] == "cd":
        return FromData()
    restart = settings["restart"] if settings["negatives"] == "pcd-restart" else 0.0
    return Persistent(Replay(settings["replay_size"], shape, device), noise_within(settings["bounds"]), restart)


def check_replay(rows: Tensor, settings: dict[str, Any]) -> None:
    """Refuse a ``replay_size`` that a batch of the training rows' chains does not fit into, where there is a buffer."""
    size, batch_size = settings["replay_size"], min(settings["batch_size"], len(rows))
    if 0 < size < batch_size and settings["negatives"] != "cd":
        raise parameters.InvalidParameter(
            f"replay_size={size} does not hold the chains of one batch: make it at least {batch_size}, or batch_size "
            "smaller."
        )


def check_starts(rows: Tensor, settings: dict[str, Any]) -> None:
    """Refuse adjusted chains from data on the bounds: half of a coordinate's steps lead outside, and one is enough."""
    if not settings["adjusted"] or settings["negatives"] != "cd":
        return
    low, high = settings["bounds"]
    on_bounds = float(Space(low, high).at_bounds(rows)) * rows[0].numel()
    if on_bounds > MOST_ON_BOUNDS:
        margin = 0.1 * (high - low)
        raise parameters.InvalidParameter(
            f"adjusted=True with negatives='cd' moves nothing here: on average {on_bounds:.0f} of a row's "
            f"{rows[0].numel()} values lie on the bounds, and steps that lead one of them outside are refused. Use "
            f"wider ones, such as bounds=({low - margin:g}, {high + margin:g}), or adjusted=False."
        )
