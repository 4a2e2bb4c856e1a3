"""Why is a row abnormal: contributions that sum to its score, and what would have to change."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from offmanifold import calibration
from offmanifold.data.inputs import Float64Array
from offmanifold.data.tables import Preparation
from offmanifold.training.precision import computing_in

if TYPE_CHECKING:
    from offmanifold.detectors.scorer import Scorer

# A path's sum may miss the score's change by this share before it is cut finer, at most MOST_POINTS times.
RESIDUAL, FEWEST_POINTS, MOST_POINTS = 0.01, 32, 512
# The nearest normal row: its p-value, steps of the search, and a step's length (standard deviations, grey levels).
ORDINARY, STEPS, STEP, PIXEL_STEP = 0.2, 100, 0.05, 0.01
# Steps of a table's search grow by so much each: a row may lie a hundred deviations off.
GROWTH = 1.05
# Rows, images, that are looked at together. Always as many, and whole vectors of the processor: a last bit may decide
# how a search ends.
PASS, IMAGE_PASS = 32, 16
# Columns that a product has at least: with fewer (5 to 7, 9 to 11 on a processor with AVX-512) a row's last bits go by
# where in the pass it stands.
FEWEST_COLUMNS = 16
# Whole numbers below it are shown with all their digits.
WHOLE = 2.0**53
# A column is named from this share of the worst column's contribution on.
LEAST = 0.01
# Between these quantiles a column's value is usual.
USUAL = (0.05, 0.95)


class Cells(NamedTuple):
    """An energy split up: what each cell ``(n, *shape)`` and each latent ``(n, k)`` adds to it."""

    cells: Tensor
    latent: Tensor | None = None


class Reason(NamedTuple):
    """A column that speaks against a row: what it adds to the score, its value, the nearest normal row's.

    Values of mixed tables are text, booleans and dates; None or NaN where there is none. ``usual`` are the column's 5 %
    and 95 % quantiles, None where they are not known, and of categories and booleans.
    """

    column: str
    contribution: float
    value: Any
    nearest_normal: Any
    usual: tuple[Any, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """Why rows score as they do.

    For each row ``contributions``, ``latent``, ``base`` and ``residual`` sum to ``score``; all are in the score's unit,
    and negative is abnormal.

    Attributes
    ----------
    rows : (n, columns) or images in the layout of ``X``, or a polars frame where not all columns are numbers
        What is explained.
    score : (n,) float64
    contributions : (n, columns) or images in the layout of ``X``
        What each cell adds to the score.
    latent : (n, k) float64
        What each latent's KL adds; k is 0 where the score has no such part.
    base, residual : (n,) float64
        Zero where the score is a sum over cells and none is missing: where one is, ``base`` is what makes the score
        comparable to complete rows'. Elsewhere contributions are those to the change along the straight
        path from ``nearest`` (integrated gradients, Sundararajan et al., 2017): ``base`` is the score there, and
        ``residual`` is what the path's sum misses. Where no nearest normal row was found the path begins at the
        columns' means, and for images, or with ``scale=None``, where the search ended.
    nearest : same shape as the rows
        The row changed as little as the search could until its p-value is ordinary, one category or boolean alone where
        that is enough: what would have to change. What need not is the row's own. NaN where none was found.
    exact : bool
        Whether the score is a sum over cells.
    columns : tuple of str
        A table's, by name or number; empty for images.
    usual : mapping of str to pairs
        By column the 5 % and 95 % quantiles of the calibration rows stored with the detector, of numbers and dates.
    ordinary : (n,) bool
        Whether a nearest normal row was found.
    """

    rows: Any
    score: Float64Array
    contributions: Float64Array
    latent: Float64Array
    base: Float64Array
    residual: Float64Array
    nearest: Any
    exact: bool
    columns: tuple[str, ...] = ()
    usual: Mapping[str, tuple[Any, Any]] = dataclasses.field(default_factory=dict)
    ordinary: npt.NDArray[np.bool_] = dataclasses.field(default_factory=lambda: np.zeros(0, np.bool_))

    def __repr__(self) -> str:
        kind = f"{self.contributions.shape[1]} columns" if self.contributions.ndim == 2 else "pixels"
        return f"Explanation({len(self.score)} rows, {kind}: score, contributions, nearest, …; see top(row))"

    def top(self, row: int, count: int = 3) -> list[Reason]:
        """Return the columns of a table that speak against ``row``, worst first and ``count`` at most.

        Those that add less than a hundredth of what the worst does are left out.
        """
        if self.contributions.ndim != 2:
            raise ValueError("top is for tables; an image's contributions are a map: contributions[row].")
        own = self.contributions[row]
        order = [i for i in np.argsort(own, kind="stable")[:count] if own[i] < min(0, LEAST * own.min())]
        return [
            Reason(
                self.columns[i],
                float(own[i]),
                _plain(self.rows[row, int(i)]),
                _plain(self.nearest[row, int(i)]),
                self.usual.get(self.columns[i]),
            )
            for i in order
        ]

    def beside(self, row: int) -> dict[str, float]:
        """Return by name what a row's score is the sum of beside its columns."""
        found = {"latents": float(self.latent[row].sum())} if self.latent.shape[1] else {}
        base = float(self.base[row])
        if not self.exact:
            begins = "nearest normal row" if self.ordinary[row] else "where the path begins"
            residual = float(self.residual[row])
            missed = {"what the path misses": residual} if abs(residual) > RESIDUAL * abs(self.score[row]) else {}
            return {**found, begins: base, **missed}
        return {**found, "missing cells": base} if base else found


def cell(value: Any, digits: int = 6) -> str:
    """Show a cell of a table; nothing where it is missing; a date to the second, and without a time that is none."""
    if value is None or value != value:
        return ""
    if isinstance(value, datetime.datetime):
        value = value.replace(microsecond=0)
    if isinstance(value, float):
        return f"{value:.0f}" if value == round(value) and abs(value) < WHOLE else f"{value:.{digits}g}"
    return str(value).removesuffix(" 00:00:00")


def cell_and_normal(value: Any, normal: Any, usual: tuple[Any, ...] = ()) -> tuple[str, str, list[str]]:
    """Show a cell, what it is in the nearest normal row, and what it usually is; no normal one if it is that.

    With digits of a hundredth of how far they lie apart, six at least, and so many that the first two differ.
    """
    known = [other for other in (value, normal, *usual) if isinstance(other, float) and math.isfinite(other)]
    apart, size = (max(known) - min(known), max(map(abs, known))) if known else (0.0, 0.0)
    digits = min(max(6, math.ceil(math.log10(size / apart)) + 2), 17) if apart > 0 else 6
    ends = [cell(end, digits) for end in usual]
    found, other = cell(value, digits), cell(normal, digits)
    if value == normal or not other:
        return found, "", ends
    while found == other and digits < 17:
        digits += 1
        found, other = cell(value, digits), cell(normal, digits)
    return found, other if found != other else "", ends


def _plain(value: Any) -> Any:
    """Return a cell as Python has it."""
    return value.item() if isinstance(value, np.generic) else value


def explain(detector: Scorer, X: Any) -> Explanation:
    """Explain the scores of rows: see :meth:`Scorer.explain`."""
    rows = detector._fitted_rows(X)
    found: list[dict[str, Tensor]] = []
    with computing_in(detector._scoring_dtype, detector.module_):
        for part, real in detector._passes(rows):
            found.append(
                {name: values.double().cpu() for name, values in _explained_apart(detector, part[:real]).items()}
            )
    joined = {name: torch.cat([part[name] for part in found]) for name in found[0]}
    arrays = {name: values.numpy() for name, values in joined.items()}
    score = detector._scores(rows)
    total = arrays["contributions"].reshape(len(score), -1).sum(1) + arrays["latent"].sum(1) + arrays["base"]
    own = rows.take(slice(None)).astype(np.float64)
    nearest = detector._inverse(joined["nearest"])
    if own.ndim == 2:
        nearest = np.where(arrays["moved"].astype(bool), nearest, own)  # to the last digit
    ordinary = arrays["found"].astype(bool)
    nearest[~ordinary] = np.nan
    preparation = detector._standardiser
    if isinstance(preparation, Preparation):  # the user's columns, not what they became
        owner = preparation.owner[:, None] == np.arange(len(preparation.columns))
        arrays["contributions"] = arrays["contributions"] @ owner
    return Explanation(
        rows=rows.present(),
        score=score,
        contributions=rows.as_came.arrange(arrays["contributions"]),
        latent=arrays["latent"],
        base=arrays["base"],
        residual=score - total,
        nearest=rows.as_came.present(nearest),
        exact=bool(arrays["exact"].all()),
        columns=detector.spec_.names,
        usual=_usual(detector),
        ordinary=ordinary,
    )


def _usual(detector: Scorer) -> dict[str, tuple[Any, Any]]:
    """Return between what values nine in ten stored rows have each column of numbers or dates."""
    rows, spec = detector.calibration_rows_, detector.spec_
    if rows is None or spec.kind == "image":
        return {}
    kinds = ["number"] * len(spec.names) if spec.details is None else [column.kind for column in spec.details]
    known = [i for i, kind in enumerate(kinds) if kind in ("number", "date") and np.isfinite(rows[:, i]).any()]
    ends = np.full((2, len(kinds)), np.nan)
    ends[:, known] = np.nanquantile(rows[:, known], USUAL, axis=0, method="nearest")
    shown = spec.present(ends)
    return {spec.names[i]: (_plain(shown[0, i]), _plain(shown[1, i])) for i in known}


def _explained_apart(detector: Scorer, rows: Tensor) -> dict[str, Tensor]:
    """Explain complete rows and those with gaps apart: beside a gap a complete row's gradient has other last bits."""
    gaps = rows.flatten(1).isnan().any(1)
    groups = [place for place in (torch.nonzero(~gaps)[:, 0], torch.nonzero(gaps)[:, 0]) if len(place)]
    parts = [_explained(detector, rows[place]) for place in groups]
    back = torch.cat(groups).argsort()
    return {name: torch.cat([part[name] for part in parts])[back] for name in parts[0]}


def _explained(detector: Scorer, rows: Tensor) -> dict[str, Tensor]:
    """Return by name what an explanation of prepared rows consists of."""
    cells = _cells(detector, rows)
    nearest, ordinary = _nearest_normal(detector, rows)
    n = len(rows)
    told = {
        "nearest": nearest, "found": ordinary, "moved": _moved(detector, rows, nearest),
        "exact": torch.full((n,), cells is not None),
    }  # fmt: skip
    if cells is not None:
        latent = rows.new_zeros(n, 0) if cells.latent is None else -cells.latent
        levelled = _energy(detector, rows) - _energy(detector, rows, detector._raw_energy)
        return {**told, "contributions": -cells.cells, "latent": latent, "base": -levelled}
    # A search that found no ordinary row may have ended far from all: the columns' means are a better beginning.
    elsewhere = torch.zeros_like(rows) if detector._standardiser is not None else nearest
    start = torch.where(_each(ordinary, rows) | rows.isnan(), nearest, elsewhere)
    contributions = _along_path(detector, start, rows)
    base = -_energy(detector, start)
    return {**told, "contributions": contributions, "latent": rows.new_zeros(n, 0), "base": base}


def _in_passes(detector: Scorer, rows: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Yield rows in passes of one size, with how many of them are real: a row's result must not hang on its company."""
    for part in torch.split(rows, _pass(rows)):
        real = len(part)
        yield torch.cat([part, part[-1:].expand(_pass(rows) - real, *part.shape[1:])]), real


def _pass(rows: Tensor) -> int:
    return IMAGE_PASS if rows.ndim > 2 else PASS


def _each(values: Tensor, rows: Tensor) -> Tensor:
    """Return a value a row ``(n,)`` as a factor of rows."""
    return values.view(-1, *[1] * (rows.ndim - 1))


@torch.no_grad()
def _energy(detector: Scorer, rows: Tensor, compute: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Return energies ``(n,)`` of prepared rows."""
    compute = compute or detector._energy
    return torch.cat([compute(part)[:real] for part, real in _in_passes(detector, rows)])


@torch.no_grad()
def _cells(detector: Scorer, rows: Tensor) -> Cells | None:
    """Return what each cell and each latent adds to the energies of prepared rows."""
    parts, latents = [], []
    for part, real in _in_passes(detector, rows):
        cells = detector._energy_cells(detector.module_, detector._shown(part))
        if cells is None:
            return None
        parts.append(cells.cells[:real])
        if cells.latent is not None:
            latents.append(cells.latent[:real])
    return Cells(torch.cat(parts), torch.cat(latents) if latents else None)


class _FixedLinear(torch.autograd.Function):
    """A linear layer of fixed weights, whose gradient treats every row of a pass alike."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return F.linear(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        columns = weight.shape[1]
        wide = F.pad(weight.to(slope.dtype), (0, FEWEST_COLUMNS - columns))
        return (slope @ wide)[..., :columns], None, None


class _RowsAlike(TorchFunctionMode):
    """Within it, narrow linear layers are :class:`_FixedLinear`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and args[1].shape[1] < FEWEST_COLUMNS:
            func = _FixedLinear.apply
        return func(*args, **kwargs or {})


def energy_and_slope(detector: Scorer, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return energies ``(n,)`` of prepared rows and their gradient ``(n, *shape)``, None where there is none."""
    energies, slopes = [], []
    for part, real in _in_passes(detector, rows.detach().to(detector._device)):
        own = part.requires_grad_()
        with torch.enable_grad(), _RowsAlike():
            energy = detector._energy(own)
        if energy.requires_grad:
            slopes.append(torch.autograd.grad(energy.sum(), own)[0][:real])
        energies.append(energy.detach()[:real])
    return torch.cat(energies), torch.cat(slopes) if slopes else None


def _along_path(detector: Scorer, start: Tensor, end: Tensor) -> Tensor:
    """Return each cell's part of the score's change from ``start`` to ``end``.

    Places on the path lie the closer to its start the longer it is: on the way to a row a million deviations off an
    energy changes as the distance's logarithm does.
    """
    change = (_energy(detector, start) - _energy(detector, end)).double()
    parts = torch.zeros_like(end, dtype=torch.float64)
    way = (end - start).nan_to_num()
    length = way.flatten(1).abs().amax(1).double().clamp(min=1e-3).log1p()
    rough = torch.arange(len(end), device=end.device)
    points = FEWEST_POINTS
    while len(rough) and points <= MOST_POINTS:
        slopes = torch.zeros_like(parts[rough])
        for places in torch.split(torch.arange(len(rough) * points, device=end.device), _pass(end)):
            which, at = places // points, (places % points + 0.5).double() / points
            row = rough[which]
            whole = length[row].expm1()
            place = _each((at * length[row]).expm1() / whole, end)
            _, slope = energy_and_slope(detector, start[row] + place.to(way) * way[row])
            if slope is None:
                return parts
            speed = _each(length[row] * (at * length[row]).exp() / whole, end)
            slopes.index_add_(0, which, slope.double() * speed)
        parts[rough] = -way[rough].double() * slopes / points
        missed = (parts[rough].flatten(1).sum(1) - change[rough]).abs()
        rough = rough[missed > RESIDUAL * change[rough].abs()]
        points *= 2
    return parts


def _nearest_normal(detector: Scorer, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Change each row until its p-value is ordinary; return what it has become, and whether it is.

    The least change first: another level of one category, then a descent of the energy, then a descent from there.
    """
    known = detector.calibration_scores_
    limit = calibration.threshold(known, ORDINARY)
    wanted = -(limit if np.isfinite(limit) else float(np.median(known)))
    ordinary = _energy(detector, rows) <= wanted
    now, odd = rows.clone(), torch.nonzero(~ordinary)[:, 0]
    if not len(odd):
        return now, ordinary
    starts = [rows[odd]]
    if isinstance(detector._standardiser, Preparation):
        exchanged, energy = _exchanged(detector, detector._standardiser, rows[odd])
        now[odd], ordinary[odd] = exchanged, energy <= wanted
        starts.append(exchanged)
    for start in starts:
        left = ~ordinary[odd]
        if bool(left.any()):
            places = odd[left]
            now[places], ordinary[places] = _descended(detector, rows[places], start[left], wanted)
    return now, ordinary


def _exchanged(detector: Scorer, preparation: Preparation, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Exchange in each row the one category or boolean that lowers its energy most; return the energies too."""
    best, lowest = rows.clone(), _energy(detector, rows)
    owner, block = torch.from_numpy(detector._owner).to(rows.device), detector._inverse(rows)
    for i, column in enumerate(preparation.columns):
        for level in range({"category": len(column.levels), "boolean": 2}.get(column.kind, 0)):
            changed = block.copy()
            changed[:, i] = np.where(np.isnan(block[:, i]), np.nan, level)
            made = torch.where(owner == i, detector._prepare(changed).to(rows), rows)
            energy = _energy(detector, made)
            better = energy < lowest
            best[better], lowest[better] = made[better], energy[better]
    return best, lowest


def _descended(detector: Scorer, rows: Tensor, start: Tensor, wanted: float) -> tuple[Tensor, Tensor]:
    """Descend the energy to ``wanted``; return where that ended, and whether there. What stays is that of ``rows``."""
    image = detector.spec_.kind == "image"
    # Between two categories lies no row: there, what counts is the nearest that there can be.
    numbers = all(column.kind == "number" for column in detector.spec_.details or ())
    now = start.clone()
    waiting = torch.arange(len(rows), device=rows.device)
    for step in range(STEPS + 1):
        energy, slope = energy_and_slope(detector, now[waiting])
        reached = now[waiting]
        if not numbers:
            reached = _possible(detector, rows[waiting], reached)
            energy = _energy(detector, reached)
        left = ~(energy <= wanted)
        now[waiting[~left]] = reached[~left]
        waiting = waiting[left]
        if not len(waiting) or slope is None or step == STEPS:
            break
        slope = torch.nan_to_num(slope[left])
        size = _each(slope.flatten(1).abs().amax(1).clamp(min=1e-12), rows)
        moved = now[waiting] - (PIXEL_STEP if image else STEP * GROWTH**step) * slope / size
        now[waiting] = moved.clamp(0, 1) if image else moved
    there = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    there[waiting] = False
    return now, there


def _moved(detector: Scorer, rows: Tensor, others: Tensor) -> Tensor:
    """Return in which of the user's columns prepared rows differ ``(n, columns)``; of images, nothing."""
    if rows.ndim > 2:
        return rows.new_zeros(len(rows), 0)
    owner = torch.from_numpy(detector._owner).to(rows.device)
    changed = (rows.nan_to_num() != others.nan_to_num()).long()
    return changed.new_zeros(len(rows), detector.spec_.dimensions).index_add_(1, owner, changed) > 0


def _possible(detector: Scorer, rows: Tensor, moved: Tensor) -> Tensor:
    """Return prepared rows as there can be: each category one of its levels; what did not move is left to the bit."""
    whole = detector._prepare(detector._inverse(moved)).to(rows)
    owner = torch.from_numpy(detector._owner).to(rows.device)
    return torch.where(_moved(detector, rows, moved)[:, owner], whole, rows)
