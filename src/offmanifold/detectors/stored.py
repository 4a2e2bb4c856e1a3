"""How far rows lie from stored ones, at several noise levels."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from offmanifold.probability.missing import filled, missing_cells, share_seen

# Distances to stored rows held at a time: few enough to stay in the processor's cache.
CELLS = 2**19
# Logarithm of the smallest weight of a stored row beside the largest: smaller ones would count for nothing, and cost a
# tenfold where they leave the normal range of float32.
FAINT = -60.0


class StoredRows(nn.Module):
    """The energy of stored rows under noise: a soft distance from the nearest of them.

    At noise level σ it is −2σ² log mean exp(−‖x − xᵢ‖²/2σ²)/d, the mean over stored rows. Its slope is twice what the
    exact denoiser of these rows, their mean under the weights exp(−‖x − xᵢ‖²/2σ²), would change in x; for σ → 0 it is
    the squared distance from the nearest, for σ → ∞ the mean one.

    Parameters
    ----------
    count, dimensions : int
        Of stored rows.
    levels : sequence of float
        Noise levels.
    """

    # About their mean: far from zero the squares of float32 would drown the distances.
    rows: Tensor
    centre: Tensor
    norms: Tensor

    def __init__(self, count: int, dimensions: int, levels: list[float]) -> None:
        super().__init__()
        self.levels = list(levels)
        self.register_buffer("rows", torch.zeros(count, dimensions))
        self.register_buffer("centre", torch.zeros(dimensions))
        self.register_buffer("norms", torch.zeros(count))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def features(self) -> int:
        """How many distances there are of a row."""
        return len(self.levels) if len(self) else 0

    def store(self, rows: Tensor) -> None:
        """Keep complete rows ``(n, d)`` in place of those kept before."""
        self.centre = rows.mean(0)
        self.rows = rows - self.centre
        self.norms = self.rows.square().sum(1)

    @contextlib.contextmanager
    def first(self, count: int) -> Iterator[None]:
        """Within the block there are only the first ``count`` rows."""
        rows, norms = self.rows, self.norms
        self.rows, self.norms = rows[:count], norms[:count]
        try:
            yield
        finally:
            self.rows, self.norms = rows, norms

    def forward(self, rows: Tensor) -> Tensor:
        """Return soft squared distances a dimension: ``(n, levels)``; with missing cells the mean over those seen."""
        return self._distances(rows - self.centre, None)

    def from_others(self, places: Tensor) -> Tensor:
        """Return those of the stored rows at ``places`` from all other stored rows: ``(n, levels)``."""
        return self._distances(self.rows[places], places)

    def _distances(self, rows: Tensor, own: Tensor | None) -> Tensor:
        count, columns = self.rows.shape
        others = count if own is None else count - 1
        size = max(1, CELLS // count)
        parts = []
        for start in range(0, len(rows), size):
            whole = rows[start : start + size]
            missing, share = missing_cells(whole), share_seen(whole).reshape(-1, 1)
            part = filled(whole)
            # −‖x − xᵢ‖²/2, but for what is the same for all i.
            exponents = torch.addmm(self.norms, part, self.rows.T, beta=-0.5)
            if missing is not None:
                exponents.addmm_(missing.to(part.dtype), self.rows.square().T, alpha=0.5).div_(share)
            if own is not None:
                exponents.scatter_(1, own[start : start + size, None], -1e30)
            nearest = exponents.detach().amax(1, keepdim=True)
            exponents.sub_(nearest)
            # Fresh memory for each level costs as much as its exponentials; only gradients need it.
            spare = None if torch.is_grad_enabled() else torch.empty_like(exponents)
            least = (0.5 * part.square().sum(1) / share[:, 0] - nearest[:, 0]).clamp(min=0)
            found = []
            for sigma in self.levels:
                weights = torch.mul(exponents, 1 / sigma**2, out=spare).clamp_(min=FAINT).exp_()
                mean = weights.sum(1) / others
                found.append(2 * (least - sigma**2 * mean.log()) / columns)
            parts.append(torch.stack(found, 1))
        return torch.cat(parts).clamp(min=0)
