"""How rows lie to those that a detector was trained on, from what its file says of these."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from offmanifold.data.inputs import Rows
from offmanifold.detectors.base import OutlierDetector
from offmanifold.measures.shift import PATCHES, Shift, compared_parts, shift

# Cells of rows prepared at a time.
CELLS = 2**22
# A shift of fewer standard deviations is none worth telling, however certain it is; a certain one has such a p-value.
LEAST_SHIFT, CERTAIN = 0.05, 0.001


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Means of rows beside those of training.

    Attributes
    ----------
    shift : Shift
    parts : list of str
        The column, or patch, that each part of a row that was compared belongs to.
    """

    shift: Shift
    parts: list[str]

    @property
    def moved(self) -> list[str]:
        """The columns, or patches, whose means differ from those of the training rows, the farthest first."""
        return list(dict.fromkeys(self.parts[part] for part in self.shift.moved))

    @property
    def gaps(self) -> dict[str, float]:
        """How far the mean of each column, or patch, lies from the training rows' in standard deviations.

        Of a column that has become several cells, and of a patch's channels, the farthest counts. The farthest first.
        """
        found: dict[str, float] = {}
        for part, gap in zip(self.parts, self.shift.gaps, strict=True):
            found[part] = max(found.get(part, 0.0), float(gap), key=abs)
        return dict(sorted(found.items(), key=lambda item: -abs(item[1])))


def certain(found: Shift) -> bool:
    """Say whether rows have moved, by more than chance and so far that it matters."""
    return found.p_value < CERTAIN and found.size.value >= LEAST_SHIFT


def shift_told(found: Shift) -> str:
    """Say how far rows have moved."""
    size = f"{found.size.value:.2f} standard deviations [{found.size.low:.2f}, {found.size.high:.2f}]"
    if certain(found):
        return f"Means lie {size} farther from the training rows' than chance explains."
    if found.p_value < CERTAIN:
        return f"Means differ from those of the training rows by too little to matter: {size}, p = {found.p_value:.2g}."
    return f"Means differ from those of the training rows as chance has it (p = {found.p_value:.2g})."


def cell_names(detector: OutlierDetector) -> list[str]:
    """Return the name of the column that each cell of a table, as the network sees it, belongs to."""
    return [detector.spec_.names[i] for i in detector._owner]


def compared(detector: OutlierDetector, block: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return what is compared of canonical rows ``(n, parts)``."""
    return compared_parts(detector._prepare(block))


def compare(detector: OutlierDetector, parts: npt.NDArray[np.float32]) -> Comparison | None:
    """Compare rows by what :func:`compared` gives; None where the model's file does not know those of training."""
    known = detector.training_moments_
    if known is None:
        return None
    if detector.spec_.kind == "image":
        patches = [f"the patch in row {1 + i // PATCHES}, column {1 + i % PATCHES}" for i in range(PATCHES**2)]
        names = patches * detector.spec_.shape[0]
    else:
        names = cell_names(detector)
    return Comparison(shift(known, parts), names)


def compare_some(detector: OutlierDetector, rows: Rows, index: npt.NDArray[np.intp]) -> tuple[Comparison | None, float]:
    """Compare some of a user's rows, a block at a time; return with it the share of their cells that are missing."""
    size = max(1, CELLS // detector.spec_.dimensions)
    parts, missing = [], []
    for start in range(0, len(index), size):
        block = rows.take(index[start : start + size])
        parts.append(compared(detector, block))
        missing.append(np.isnan(block).mean() * len(block))
    return compare(detector, np.concatenate(parts)), float(np.sum(missing) / len(index))
