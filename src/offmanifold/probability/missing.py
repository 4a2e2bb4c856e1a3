"""Missing cells: NaN in prepared rows of a table. They take part in no loss and no score."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# How often a network is asked what stands in a missing cell, and how far from the mean an answer may lie.
ROUNDS, FARTHEST = 3, 5.0

_complete = contextvars.ContextVar("complete", default=False)


@contextlib.contextmanager
def nothing_missing(known: bool = True) -> Iterator[None]:
    """Where it is known that no cell is missing, do not look: within the block NaN is what went wrong, as ever.

    Training and chains ask at every step, and on an accelerator each answer waits for the device.
    """
    token = _complete.set(known or _complete.get())
    try:
        yield
    finally:
        _complete.reset(token)


def missing_cells(rows: Tensor) -> Tensor | None:
    """Return where rows ``(n, d)`` have no value, or None where all have one (images always do)."""
    # One pass over the rows tells that nothing is missing, nearly always.
    if rows.ndim != 2 or _complete.get() or math.isfinite(rows.detach().sum()):
        return None
    missing = rows.isnan()
    return missing if bool(missing.any()) else None


def filled(rows: Tensor) -> Tensor:
    """Return rows with the columns' mean, zero, in missing cells."""
    missing = missing_cells(rows)
    return rows if missing is None else torch.where(missing, 0.0, rows)


def completed(rows: Tensor, reconstruct: Callable[[Tensor], Tensor]) -> Tensor:
    """Return rows with the network's own opinion in missing cells.

    What is put in is not scored; it keeps a mean that does not fit the other cells from spoiling their
    reconstruction (pseudo-Gibbs with means; Rezende et al., 2014, appendix F).
    """
    missing = missing_cells(rows)
    if missing is None:
        return rows
    guess = torch.where(missing, 0.0, rows)
    with torch.no_grad():
        for _ in range(ROUNDS):
            guess = torch.where(missing, reconstruct(guess).clamp(-FARTHEST, FARTHEST), guess)
    return torch.where(missing, guess, rows)


def standing_in(rows: Tensor, reconstructed: Tensor) -> Tensor:
    """Return rows with the reconstruction itself in missing cells: errors, and their gradients, are zero there."""
    missing = missing_cells(rows)
    return rows if missing is None else torch.where(missing, reconstructed.detach(), rows)


def without(missing: Tensor | None, cells: Tensor) -> Tensor:
    """Return what belongs to cells, with nothing for missing ones."""
    return cells if missing is None else torch.where(missing, 0.0, cells)


def seen(rows: Tensor) -> Tensor:
    """Return all values that rows have: rows themselves, or ``(k,)`` where some are missing."""
    missing = missing_cells(rows)
    return rows if missing is None else rows[~missing]


def cells_seen(rows: Tensor) -> Tensor:
    """Return how many cells rows have: ``(n,)``."""
    missing = missing_cells(rows)
    if missing is None:
        return rows.new_full((len(rows),), rows[0].numel())
    return (~missing).sum(1).to(rows.dtype)


def share_seen(rows: Tensor) -> Tensor:
    """Return the share of cells that rows have, ``(n,)`` or 1: a mean over all divided by it is one over those seen."""
    missing = missing_cells(rows)
    if missing is None:
        return rows.new_ones(())
    return ((~missing).sum(1).clamp(min=1) / missing.shape[1]).to(rows.dtype)
