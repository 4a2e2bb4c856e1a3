"""How rows lie to those that a detector was trained on, from what its file says of these."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from offmanifold.detectors.base import OutlierDetector
from offmanifold.measures.shift import PATCHES, Shift, compared_parts, shift

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
    missing : float
        The share of the rows' cells that are missing.
    """

    shift: Shift
    parts: list[str]
    missing: float

    @property
    def certain(self) -> bool:
        """Whether rows have moved, by more than chance and so far that it matters."""
        return self.shift.p_value < CERTAIN and self.shift.size.value >= LEAST_SHIFT

    @property
    def told(self) -> str:
        """How far rows have moved, as a sentence."""
        size, p = self.shift.size, self.shift.p_value
        far = f"{size.value:.2f} standard deviations [{size.low:.2f}, {size.high:.2f}]"
        if self.certain:
            return f"Means lie {far} farther from the training rows' than chance explains."
        if p < CERTAIN:
            return f"Means differ from those of the training rows by too little to matter: {far}, p = {p:.2g}."
        if p < 0.05:
            return f"Means differ from those of the training rows, but not for certain (p = {p:.2g})."
        return f"Means differ from those of the training rows as chance has it (p = {p:.2g})."

    @property
    def moved(self) -> list[str]:
        """The columns, or patches, whose means differ from those of the training rows, the farthest first."""
        return list(dict.fromkeys(self.parts[part] for part in self.shift.moved))

    @property
    def gaps(self) -> dict[str, float]:
        """How far the mean of each column, or patch, lies from the training rows', in their standard deviations.

        Of a column that has become several cells, and of a patch's channels, the farthest counts. The farthest first.
        """
        found: dict[str, float] = {}
        for part, gap in zip(self.parts, self.shift.gaps, strict=True):
            found[part] = max(found.get(part, 0.0), float(gap), key=abs)
        return dict(sorted(found.items(), key=lambda item: -abs(item[1])))


def cell_names(detector: OutlierDetector) -> list[str]:
    """Return the name of the column that each cell of a table, as the network sees it, belongs to."""
    return [detector.spec_.names[i] for i in detector._owner]


def compare(detector: OutlierDetector, blocks: Iterable[npt.NDArray[Any]]) -> Comparison | None:
    """Compare canonical rows, a block at a time; None where the model's file does not know those of training."""
    known = detector.training_moments_
    if known is None:
        return None
    parts, missing, cells = [], 0, 0
    for block in blocks:
        parts.append(compared_parts(detector._prepare(block)))
        missing, cells = missing + int(np.isnan(block).sum()), cells + block.size
    if detector.spec_.kind == "image":
        patches = [f"patch {1 + i // PATCHES}, {1 + i % PATCHES} of {PATCHES} × {PATCHES}" for i in range(PATCHES**2)]
        names = patches * detector.spec_.shape[0]
    else:
        names = cell_names(detector)
    return Comparison(shift(known, np.concatenate(parts)), names, missing / cells)
