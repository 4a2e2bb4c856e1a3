"""Energies of rows with missing cells, brought to the scale of complete rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from offmanifold.data.inputs import evenly

# Rows that cells are hidden in, examples made of them in all, and groups of examples by how many columns miss.
ROWS, EXAMPLES, GROUPS = 512, 4096, 8
# Cells of all examples, at most: 64 MiB.
CELLS = 2**24
# Of t: distances count as no more, spreads as no less.
FAR, NARROWEST = 5.0, 0.05
# Beyond so many columns one of them matters little, and their number alone is accounted for.
MOST_COLUMNS = 100
# Rows that must be complete for them alone to be the standard, and as a share of all.
FEWEST_COMPLETE, COMPLETE_SHARE = 20, 0.2
QUANTILES = (0.01, 0.025, 0.05, *(i / 10 for i in range(1, 10)), 0.95, 0.975, 0.99)
RIDGE = 0.002
# sinh of more leaves float32.
MOST = 80.0
PART = 1024


@dataclasses.dataclass(frozen=True)
class Levelling:
    """What an energy would be if nothing were missing: the same quantile among complete rows.

    A row with fewer cells has an energy of another mean, spread and shape, depending on how many columns miss and on
    which. All three are learned from held-out rows in which columns are hidden at random. Complete rows keep
    their energy to the last bit; a row of which nothing is known gets the median.

    Attributes
    ----------
    owner : (D,) int64
        The user's column that a prepared cell belongs to.
    centre, unit : () float32
        Median and quarter range of the complete rows' energies: t = asinh((energy − centre)/unit) is levelled, which
        is linear near the middle and logarithmic far away.
    mean, spread : (features,) float32
        Coefficients of t's mean and of its mean distance from it, by which columns are absent (see ``_features``).
    found : (groups, quantiles) float32
        Quantiles of (t − mean)/spread by how many columns miss.
    wanted : (quantiles,) float32
        Those of t of complete rows.
    """

    owner: Tensor
    centre: Tensor
    unit: Tensor
    mean: Tensor
    spread: Tensor
    found: Tensor
    wanted: Tensor

    @classmethod
    def fit(cls, energy: Callable[[Tensor], Tensor], rows: Tensor, owner: Tensor) -> Levelling:
        """Learn from prepared rows ``(n, D)`` that were not trained on; ``energy`` is that of the cells seen."""
        columns = int(owner[-1]) + 1
        count = min(EXAMPLES, max(1, CELLS // rows.shape[1]))
        rows = rows[torch.from_numpy(evenly(len(rows), min(ROWS, count))).to(rows.device)]
        complete = ~rows.isnan().any(1)
        enough = int(complete.sum()) >= max(FEWEST_COMPLETE, COMPLETE_SHARE * len(rows))
        standard = _in_parts(energy, rows[complete] if enough else rows).double()
        quarters = standard.quantile(standard.new_tensor([0.25, 0.5, 0.75]))
        centre, unit = quarters[1], (quarters[2] - quarters[0]) / 1.35 + 1e-6 * quarters[1].abs() + 1e-12
        probabilities = standard.new_tensor(QUANTILES)
        wanted = _t(standard, centre, unit).quantile(probabilities)
        groups = min(GROUPS, columns - 1)
        mean = spread = standard.new_zeros(_features(standard.new_zeros(1, columns)).shape[1])
        found = wanted.new_zeros(groups, len(QUANTILES))
        if groups:
            examples, absent = _hide(rows, owner, columns, count)
            t = _t(_in_parts(energy, examples).double().nan_to_num(), centre, unit)
            features = _features(absent.double())
            mean = _ridge(features, t)
            t = t - features @ mean
            spread = _ridge(features, t.abs().clamp(max=FAR))  # a row far off is no measure of the others
            t = t / (features @ spread).clamp(min=NARROWEST)
            group = _group(absent.sum(1), columns, groups)
            for i in range(groups):
                here = t[group == i]
                found[i] = here.quantile(probabilities) if len(here) > 1 else wanted
        tensors = (tensor.float() for tensor in (centre, unit, mean, spread, found, wanted))
        return cls(owner, *tensors)

    def __call__(self, energies: Tensor, rows: Tensor) -> Tensor:
        """Return energies ``(n,)`` of prepared rows, levelled where cells are missing."""
        columns = int(self.owner[-1]) + 1
        missing = rows.isnan()
        absent = _absent(missing, self.owner, columns)
        count = absent.sum(1)
        features = _features(absent.to(energies.dtype))
        shift, spread = features @ self.mean, (features @ self.spread).clamp(min=NARROWEST)
        t = (_t(energies, self.centre, self.unit) - shift) / spread
        levelled = energies
        if len(self.found):
            group = _group(count, columns, len(self.found))
            levelled = self._energy(_mapped(t, self.found[group], self.wanted))
            # Beyond the quantiles an energy is what it was but for what it is off at the last of them: any other slope,
            # in t above all, multiplies energies far off, which nothing seen supports.
            for end, beyond in ((0, t < self.found[group, 0]), (-1, t > self.found[group, -1])):
                off = self._energy(self.wanted[end]) - self._energy(self.found[group, end] * spread + shift)
                levelled = torch.where(beyond, energies + off, levelled)
        levelled = torch.where(missing.all(1), self.centre, levelled)
        return torch.where(count > 0, levelled, energies)

    def _energy(self, t: Tensor) -> Tensor:
        return self.centre + self.unit * t.clamp(-MOST, MOST).sinh()

    def fits(self, owner: Tensor) -> bool:
        """Say whether it is for rows whose cells belong to these columns."""
        columns = int(owner[-1]) + 1
        features = _features(torch.zeros(1, columns)).shape[1:]
        shapes = [(), (), features, features, (min(GROUPS, columns - 1), len(QUANTILES)), (len(QUANTILES),)]
        others = [self.centre, self.unit, self.mean, self.spread, self.found, self.wanted]
        return torch.equal(self.owner.cpu(), owner) and [tensor.shape for tensor in others] == shapes

    def to(self, device: torch.device) -> Levelling:
        """Return it on a device."""
        return Levelling(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return everything by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


def _t(energies: Tensor, centre: Tensor, unit: Tensor) -> Tensor:
    return torch.asinh((energies - centre) / unit)


def _group(count: Tensor, columns: int, groups: int) -> Tensor:
    """Return which group rows belong to of whose ``columns`` ``count`` are absent; those with none or all: any."""
    return ((count - 1) * groups // max(1, columns - 1)).clamp(0, groups - 1)


def _absent(missing: Tensor, owner: Tensor, columns: int) -> Tensor:
    """Return which of the user's columns are absent ``(n, columns)``: all their cells are."""
    if columns == missing.shape[1]:
        return missing
    absent = missing.new_zeros(len(missing), columns)
    absent[:, owner] = missing
    return absent


def _hide(rows: Tensor, owner: Tensor, columns: int, count: int) -> tuple[Tensor, Tensor]:
    """Return about ``count`` rows with columns hidden at random, any number of them, and which are absent then."""
    generator = torch.Generator().manual_seed(0)
    many = rows.repeat(max(1, count // len(rows)), 1)
    hidden = torch.randint(1, columns, (len(many), 1), generator=generator)
    chances = torch.rand(len(many), columns, generator=generator)
    away = (chances < chances.sort(1).values.gather(1, hidden)).to(rows.device)
    many = torch.where(away[:, owner], torch.nan, many)
    absent = _absent(many.isnan(), owner, columns)
    some = ~absent.all(1)
    return many[some], absent[some]


def _features(absent: Tensor) -> Tensor:
    """Return 1, which columns are absent, the same times the share k of those that are, and k² ``(n, features)``.

    What one column's absence does depends on how many others miss. Where there are many, their share alone counts.
    """
    share = absent.mean(1, keepdim=True)
    each = [absent, absent * share] if absent.shape[1] <= MOST_COLUMNS else [share]
    return torch.cat([torch.ones_like(share), *each, share.square()], 1)


def _ridge(features: Tensor, t: Tensor) -> Tensor:
    penalty = RIDGE * len(t) * torch.eye(features.shape[1], dtype=t.dtype, device=t.device)
    penalty[0, 0] = 0
    found: Tensor = torch.linalg.lstsq(features.T @ features + penalty, features.T @ t).solution
    return found


def _mapped(t: Tensor, found: Tensor, wanted: Tensor) -> Tensor:
    """Take t from quantiles ``found (n, q)`` to ``wanted (q,)``: linear in between, the outermost beyond."""
    step = torch.arange(found.shape[1], device=found.device) * 1e-6
    found, wanted = found + step, wanted + step  # equal quantiles (repeated rows) stay in order
    upper = torch.searchsorted(found, t.detach()[:, None]).clamp(1, found.shape[1] - 1)
    low, high = found.gather(1, upper - 1)[:, 0], found.gather(1, upper)[:, 0]
    to_low, to_high = wanted[upper[:, 0] - 1], wanted[upper[:, 0]]
    inside = to_low + (t - low) * (to_high - to_low) / (high - low)
    return inside.clamp(wanted[0], wanted[-1])


def _in_parts(energy: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    return torch.cat([energy(part) for part in torch.split(rows, PART)])
