"""A fitted detector and normal rows, in the one form that every check works with."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from offmanifold.data import outliers
from offmanifold.data.inputs import Float64Array, Rows, evenly
from offmanifold.data.tables import Preparation, Standardiser
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.explanations import energy_and_slope
from offmanifold.detectors.latent import LatentMixin
from offmanifold.diagnosis.comparison import Comparison, cell_names, compare
from offmanifold.measures.detection import auroc
from offmanifold.measures.estimates import Estimate
from offmanifold.measures.plain import Components, Neighbours
from offmanifold.probability.latents import prior_sample, project

# Below this no check on rows says anything: half of them are the reference.
FEWEST = 20
# Why nothing is told of far rows where :attr:`Patient.reach` is None.
COPIES = "These rows are copies of one another: there is no telling what is far from them."


class Patient:
    """What is examined.

    Half of the normal rows is a reference: the two plain methods learn from it, and distances are taken to it. The
    other half is scored, and synthetic outliers are made from it. Columns are prepared by the reference, whatever
    the detector itself does with them; in missing cells stands the mean, for the plain methods know none.

    Parameters
    ----------
    detector : OutlierDetector
        Fitted.
    X : array-like or frame, optional
        Normal rows. Without them those that are stored with the detector, if there are any.
    most : int
        Of which so many at most are used, evenly spread.
    seed : int
    """

    def __init__(self, detector: OutlierDetector, X: Any = None, *, most: int = 1000, seed: int = 0) -> None:
        self.detector, self.seed = detector, seed
        self.is_image = detector.spec_.kind == "image"
        self.given = 0
        empty = np.zeros((0, *detector.spec_.shape))
        found: Any = empty
        self.stored = X is None and detector.calibration_rows_ is not None
        if X is not None:
            rows = Rows(X, detector.spec_, "the detector")
            self.given = len(rows)
            found = rows.take(evenly(len(rows), most))
        elif detector.calibration_rows_ is not None:
            found = detector.calibration_rows_[evenly(len(detector.calibration_rows_), most)]
        block = found.astype(np.float64)[np.random.default_rng(seed).permutation(len(found))]
        self.rows = block
        self.count = len(block)
        self._made: dict[str, Any] = {}
        half = len(block) // 2
        details = detector.spec_.details
        self.scaler: Standardiser | Preparation = (
            Standardiser.identity(1 if self.is_image else empty.shape[1])
            if self.is_image or not half
            else Standardiser.fit(block[:half])
            if details is None
            else Preparation.fit(block[:half], details)
        )
        self.reference, self.normal = (
            np.nan_to_num(self.scaler.transform(part)) for part in (block[:half], block[half:])
        )

    def generator(self) -> torch.Generator:
        """Return a fresh generator: every check draws the same numbers whichever checks run."""
        return torch.Generator().manual_seed(self.seed)

    def users(self, rows: Any) -> Any:
        """Return standardised rows as a user knows them: ``(n, *shape)``, a frame where not all columns are numbers.

        A column that is empty in all rows given is so here: its mean, 0, may be like nothing that was trained on.
        """
        block = self.scaler.inverse(np.asarray(rows, dtype=np.float64))
        if not self.is_image and self.count:
            block[:, np.isnan(self.rows).all(0)] = np.nan
        return self.detector.spec_.present(block)

    def score(self, rows: Any) -> Float64Array:
        """Return the detector's scores of standardised rows; what is not finite counts as most abnormal."""
        return _finite(self.detector.score_samples(self.users(rows)))

    def possible(self, rows: Any) -> Any:
        """Return standardised rows as the detector will see them: a category is one of its levels, and no mixture."""
        if not isinstance(self.scaler, Preparation):
            return rows
        whole = Rows(self.users(rows), self.detector.spec_, "the detector").take(slice(None)).astype(np.float64)
        return np.nan_to_num(self.scaler.transform(whole))

    @functools.cached_property
    def scores_as_given(self) -> Float64Array:
        """The detector's scores of all rows as they came, with what is missing of them."""
        return _finite(self.detector.score_samples(self.detector.spec_.present(self.rows)))

    @functools.cached_property
    def scores(self) -> Float64Array:
        """The detector's scores of the normal rows."""
        return self.score(self.normal)

    def made(self, family: str) -> Any:
        """Return synthetic outliers of a family, as many as there are normal rows; several checks look at them."""
        if family not in self._made:
            made = outliers.make(family, torch.from_numpy(self.normal), self.generator()).numpy()
            self._made[family] = self.possible(made)
        return self._made[family]

    @functools.cached_property
    def comparison(self) -> Comparison | None:
        """How the rows given lie to those of training; None where the model's file does not know these."""
        return compare(self.detector, [self.rows])

    @property
    def variances(self) -> dict[str, float] | None:
        """The variance of each column that varies, as the network sees it; None of images, and where none is known."""
        known = self.detector.training_moments_
        if self.is_image or known is None:
            return None
        found: dict[str, float] = {}
        for name, spread in zip(cell_names(self.detector), known.spread, strict=True):
            found[name] = found.get(name, 0.0) + float(spread) ** 2
        return {name: variance for name, variance in found.items() if variance > 0}

    # --- the plain methods ------------------------------------------------------------------------------

    @functools.cached_property
    def neighbours(self) -> Neighbours:
        """Nearest neighbours in the reference."""
        return Neighbours().fit(self.reference)

    @functools.cached_property
    def components(self) -> Components:
        """Principal components of the reference."""
        return Components().fit(self.reference)

    @functools.cached_property
    def own_nearest(self) -> tuple[Float64Array, Any]:
        """:meth:`nearest` of the normal rows."""
        return self.nearest(self.normal)

    def nearest(self, rows: Any) -> tuple[Float64Array, Any]:
        """Return the distance to the nearest row of the reference, and that row."""
        distances, places = self.neighbours.nearest(rows)
        return distances, self.reference[places]

    @functools.cached_property
    def reach(self) -> float | None:
        """How far from the reference 99 of 100 normal rows lie at most, copies apart; None where too few are none."""
        own = self.own_nearest[0]
        apart = own[own > 0]
        return float(np.quantile(apart, 0.99)) if len(apart) >= FEWEST // 2 else None

    def far(self, rows: Any) -> Any:
        """Return which rows are farther from the reference than :attr:`reach`, which must be known ``(n,)``."""
        assert self.reach is not None
        return self.nearest(rows)[0] > self.reach

    def beside_plain(self, made: Mapping[str, Any]) -> dict[str, dict[str, Estimate]]:
        """Return for each family of rows the AUROC against normal ones, by method: the detector, "kNN", "PCA"."""
        methods = {"kNN": self.neighbours.score_samples, "PCA": self.components.score_samples}
        normal = {"detector": self.scores, **{name: score(self.normal) for name, score in methods.items()}}
        methods = {"detector": self.score, **methods}
        return {
            family: {name: auroc(normal[name], score(rows)) for name, score in methods.items()}
            for family, rows in made.items()
        }

    # --- inside the detector ----------------------------------------------------------------------------

    @torch.no_grad()
    def decoded(self) -> dict[str, Any]:
        """Return by name standardised rows that the detector makes of codes, as many as there are normal ones.

        Codes are "between" two normal rows' (the middle), and drawn from the "prior" where they are meant to have one.
        Without a latent space there are none.
        """
        detector = self.detector
        if not isinstance(detector, LatentMixin):
            return {}
        generator, prior = detector._generator(self.seed), detector.latent_prior
        found = torch.from_numpy(np.asarray(detector.transform(self.users(self.normal)))).float().to(detector._device)
        # Normal rows are in random order.
        codes = {"between": project((found + found.roll(1, 0)) / 2, prior or "euclidean")}
        if prior is not None:
            codes["prior"] = prior_sample(len(found), found.shape[1], prior, generator, detector._device)
        return {
            name: self.from_prepared(torch.cat([detector._decoded(part, generator) for part in torch.split(own, 256)]))
            for name, own in codes.items()
        }

    def slope(self, prepared: Tensor) -> Tensor | None:
        """Return the energy's gradient at rows as the network takes them, or None where it has none."""
        _, found = energy_and_slope(self.detector, prepared)
        return None if found is None else torch.nan_to_num(found).cpu()

    @property
    def column_of(self) -> Any:
        """Which of a table's columns each standardised cell belongs to."""
        if isinstance(self.scaler, Preparation):
            return self.scaler.owner
        return np.arange(self.normal.shape[1])

    @property
    def steppable(self) -> Any:
        """Which standardised cells a row can be moved in a little: all but those of categories, booleans and dates."""
        if isinstance(self.scaler, Preparation):
            return np.array([self.scaler.columns[i].kind == "number" for i in self.scaler.owner])
        return np.ones(self.normal.shape[1:], dtype=bool)

    @property
    def units(self) -> Tensor:
        """How much one of our standard deviations is in what the network takes: 1, or a column's own."""
        if self.is_image or self.detector.settings_["scale"] is not None:
            return torch.ones(())
        return torch.from_numpy(self.scaler.scale).float()

    def prepared(self, rows: Any) -> Tensor:
        """Return standardised rows as the network takes them."""
        return self.detector._prepare(self.scaler.inverse(np.asarray(rows, dtype=np.float64)))

    def from_prepared(self, prepared: Tensor) -> Any:
        """Return standardised rows of what the network takes."""
        block = prepared.double().cpu().numpy()
        if self.detector._standardiser is not None:
            block = self.detector._standardiser.inverse(block)
        return self.scaler.transform(block)


def among(rows: Any, others: Any) -> npt.NDArray[np.bool_]:
    """Return which rows ``(n, …)`` are copies of others ``(m, …)``, to the last bit; 0 and −0 are one."""
    known = {other.tobytes() for other in others + 0.0}
    return np.array([row.tobytes() in known for row in rows + 0.0], dtype=bool)


def _finite(scores: Float64Array) -> Float64Array:
    """Return scores with what is not finite as the most abnormal."""
    worst = -np.finfo(np.float64).max
    found: Float64Array = np.nan_to_num(scores, nan=worst, posinf=worst, neginf=worst)
    return found
