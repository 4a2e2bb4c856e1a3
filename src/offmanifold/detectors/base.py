"""What every detector shares of learning: rows are split, prepared, trained on; the decision is calibrated."""

from __future__ import annotations

import abc
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from offmanifold import calibration, parameters
from offmanifold.data.columns import Column
from offmanifold.data.inputs import InputSpec, Rows, evenly
from offmanifold.data.tables import Preparation, Standardiser
from offmanifold.detectors import remarks
from offmanifold.detectors.configured import Settings
from offmanifold.detectors.levelling import Levelling
from offmanifold.detectors.scorer import Scorer
from offmanifold.measures.estimates import difference_of_means, mean_of
from offmanifold.measures.shift import Moments, compared_parts
from offmanifold.probability.missing import missing_cells, nothing_missing
from offmanifold.training.checkpoints import Checkpointer, fingerprint, saved_seed, writable
from offmanifold.training.loop import History, train
from offmanifold.training.phases import Phase
from offmanifold.training.precision import choose_device, choose_dtype, computing_in, memory_of, ordinary
from offmanifold.training.progress import Progress
from offmanifold.training.threads import limited_to

# One row each to calibrate with and to stop by, and two to learn from.
FEWEST_ROWS = 4
# Calibration rows kept with the model at most, as many as ``diagnose`` looks at, and their cells.
EXAMINED_ROWS = {"table": 1000, "image": 400}
STORED_CELLS = 2**20
# Rows of training, and of stopping, that the report on a fit looks at.
REPORTED = 1000
# Of each weight in training: itself, its gradient, two moments, and the best one so far.
COPIES = 5
# Bytes of these from which the user is told before training begins.
LARGE = 2**29
# What else there is where every row misses a cell.
INSTEAD = ", leave columns out, or use AE, VAE or MultiscaleDenoiser"


def labelled(prepared: Tensor, labels: Tensor | None, index: npt.NDArray[np.intp]) -> Tensor:
    """Return prepared rows with their labels, if there are any, as further columns."""
    return prepared if labels is None else torch.cat([prepared.flatten(1), labels[index]], 1)


def _watched(record: dict[str, Any]) -> dict[str, float]:
    """Return the AUROC against each family of outliers that a check was judged by."""
    return {name.removeprefix("auroc/"): value for name, value in record.items() if name.startswith("auroc/")}


class OutlierDetector(Scorer, abc.ABC):
    """Base of all detectors: scikit-learn's outlier-detector interface over a PyTorch density model.

    A concrete detector stores its hyper-parameters in ``__init__`` and writes :meth:`_settings`, :meth:`_build`,
    :meth:`_phases`, :meth:`_energy_terms` and :attr:`score_unit`; concrete detectors are final.

    Attributes
    ----------
    module_ : Module
        The trained network.
    spec_ : InputSpec
        What a row is.
    settings_ : dict
        The hyper-parameters with every "auto" replaced by what it became.
    calibration_scores_ : (n,) float64
        Sorted scores of the calibration rows.
    calibration_rows_ : (m, d) float64 or (m, C, H, W) float32, or None
        Some of the calibration rows, as numbers; None with ``store_rows=False`` and from old files.
    offset_ : float
        ``decision_function = score_samples − offset_``.
    history_ : list of dict
        One record a check of training.
    rows_ : dict
        How many rows went to training, to stopping, and to calibration.
    fit_report_ : dict
        Mean scores of training rows and of calibration rows, and the gap between them, with intervals; more where a
        detector has more to tell. Empty of ``MultiscaleDenoiser``, among whose stored rows are those of training.
    training_moments_ : Moments or None
        Mean and spread of each prepared cell, or each patch of an image, over the training rows; None from old files.
    """

    training_moments_: Moments | None = None
    # The user's negatives, prepared, while training lasts.
    _negatives: Tensor | None = None

    # --- what a concrete detector writes ---------------------------------------------------------------

    @abc.abstractmethod
    def _phases(self, model: Any, settings: Settings) -> list[Phase]:
        """Say how the module is trained."""

    def _settle(self, rows: Tensor, settings: Settings) -> None:
        """Look at the prepared training rows: raise ``ValueError`` where they do not suit, add settings they decide."""

    def _take_labels(self, y: Any, training: npt.NDArray[np.intp], rows: int, settings: Settings) -> Tensor | None:
        """Return what training is told about each row, ``(rows, k)``: further columns of what losses see."""
        return None

    def _take_negatives(self, negatives: Any, rows: Tensor, others: Sequence[Tensor]) -> None:
        """Keep the user's negatives, prepared, as ``_negatives`` while training lasts.

        ``rows`` are those to train on, ``others`` where there are negatives the rest of the user's, prepared too.
        """
        if negatives is not None:
            raise TypeError(
                f"{type(self).__name__} learns from normal rows alone and takes no negatives. Use NegativeVAE "
                "(negative-vae), which does."
            )
        self._negatives = None

    def _finish(self, model: Any, training: Tensor, held_out: Tensor, settings: Settings) -> None:
        """Complete the trained module from the rows it was trained on and stopped by; may add settings."""

    def training_remarks(self) -> list[tuple[str, str]]:
        """Return what ``history_`` shows that a user should know, and what to do, a sentence or two each.

        :meth:`fit` warns of it; ``inspect`` and ``diagnose`` say it again.
        """
        return []

    def _warn_about_training(self, normal: Tensor) -> None:
        """Warn of what else training showed; ``normal`` are prepared rows of calibration."""

    # --- learning --------------------------------------------------------------------------------------

    @ordinary()
    def fit(
        self,
        X: Any,
        y: Any = None,
        *,
        negatives: Any = None,
        columns: Mapping[str, str] | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        resume: bool = False,
        checkpoint_every: float = 30.0,
    ) -> Self:
        """Learn what normal rows look like, and calibrate the decision.

        Parameters
        ----------
        X : array-like, torch tensor or data frame
            Normal rows: ``(n, d)``, missing cells NaN or null; a frame of numbers, booleans, text, categories and
            dates; or images ``(n, H, W)``, ``(n, C, H, W)``, ``(n, H, W, C)``.
        y : ignored, but for detectors that learn from labels
            For scikit-learn's pipelines.
        negatives : array-like, frame or path, optional
            Rows of what is *not* normal, for detectors that learn from them (:class:`~offmanifold.NegativeVAE`).
        columns : mapping of str to str, optional
            What columns of a frame are, where their type does not tell: "number", "category", "boolean" or "date"; or
            "ignored": left out, here and of all later data.
        checkpoint : path, optional
            Where to save the run from time to time and at its end; Ctrl-C then saves before it stops.
        resume : bool
            Go on from ``checkpoint`` if it exists: with as many threads, bit for bit as if the run had never stopped.
        checkpoint_every : float
            Seconds between two checkpoints.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            For a hyper-parameter or data that cannot be used; the message says what is expected.
        TrainingDiverged
            If the loss becomes non-finite or explodes, or where training against samples is watched, no longer
            reconstructs, or its chains end at values that are not finite. Its ``history`` has what was recorded.

        Notes
        -----
        A fit that ends in an error once training has been prepared leaves the detector unfitted.

        The rows are split at random: a tenth chooses the weights to keep, a fifth (see
        ``calibration_fraction``) calibrates and does nothing else, the rest is trained on. Standardisation
        uses the training rows alone.
        """
        self._check_common()
        rows = Rows(X, owner=type(self).__name__, columns=columns)
        if len(rows) < FEWEST_ROWS:
            raise ValueError(
                f"n_samples = {len(rows)}: {type(self).__name__} needs at least {FEWEST_ROWS} rows to learn from, "
                "stop by and calibrate with."
            )
        # What cannot be written is found out now, not when there is something to lose.
        path = None if checkpoint is None else writable(checkpoint)
        parameters.real("checkpoint_every", checkpoint_every, minimum=0)
        resume = resume and path is not None and path.exists()
        seed = (
            saved_seed(path)[0]  # the run that is continued keeps its own
            if resume and path is not None
            else self._seed()
        )
        for_calibration, for_stopping, for_training = self.split(len(rows), seed=seed)

        # From here on this is no longer the detector that an earlier fit made, should this one fail.
        self.__dict__.pop("module_", None)
        self._device = choose_device(self.device)
        self._check_room(len(rows), rows.spec.dimensions)
        rows.learn(for_training)
        self.spec_ = rows.spec
        training_rows = rows.take(for_training)
        if rows.spec.kind == "table" and np.isnan(training_rows).all():
            raise ValueError("Every cell of every row to learn from is missing: there is nothing to learn.")
        self._standardiser = self._fit_preparation(training_rows)
        settings = self._resolved(self._network_spec, len(rows))
        self.settings_ = settings
        labels = self._take_labels(y, for_training, len(rows), settings)
        self._check_room(len(rows), self._network_spec.dimensions)
        prepared = self._prepare(training_rows)
        if self.spec_.kind == "table" and self.scale is None:
            remarks.of_units(prepared)
        self.training_moments_ = Moments.of(compared_parts(prepared))
        data = self._learnable(labelled(prepared, labels, for_training))
        held_out = self._prepare(rows.take(for_stopping))
        held_out = self._learnable(labelled(held_out, labels, for_stopping), "rows to stop by")
        self._settle(data, settings)
        calibrating = rows.take(for_calibration)  # a bad value among them is better found now than after training
        others = () if negatives is None else (held_out, self._prepare(calibrating))
        complete = missing_cells(data) is None and missing_cells(held_out) is None
        try:
            self._take_negatives(negatives, data, others)
            self._check_memory(self._network_spec, settings)
            model = self._new_module(self._network_spec, settings, seed)
            dtype = choose_dtype(self.precision, model, self._device)
            checkpointer = None
            if path is not None:
                beside = () if self._negatives is None else (self._negatives,)
                # What "auto" came to: on another machine it may come to something else, and the run to other weights.
                here = {"device": self._device.type, "precision": str(dtype).removeprefix("torch.")}
                kept = {"rows kept for calibration": len(for_calibration)}
                decisive = {"detector": self.key, **settings, **here, **kept}
                known = int(self.random_state) if isinstance(self.random_state, int | np.integer) else None
                digest = fingerprint(data, held_out, *beside)
                checkpointer = Checkpointer(path, decisive, digest, seed, checkpoint_every, known)
            with limited_to(self._threads(model, settings)), nothing_missing(complete):
                self.history_: History = train(
                    model,
                    self._phases(model, settings),
                    data.to(self._device),
                    held_out.to(self._device),
                    seed=seed,
                    dtype=dtype,
                    checkpointer=checkpointer,
                    resume=resume,
                    progress=Progress(self.verbose),
                )
        finally:
            self._negatives = None  # rows of the user's are no part of a model, nor of a run that failed
        self.module_ = model.requires_grad_(False)
        self.rows_ = {
            "training": len(data),
            "stopping": len(held_out),
            "calibration": len(for_calibration),
        }
        with torch.no_grad():
            self._finish(model, data.to(self._device), held_out.to(self._device), settings)
            without_labels = held_out if labels is None else held_out[:, : -labels.shape[1]]
            self._levelling = self._learn_levels(without_labels.to(self._device))
        self._set_input_attributes()
        self.calibration_scores_ = np.sort(self._scores(rows, for_calibration))
        self.calibration_rows_ = self._kept(rows, for_calibration)
        self.fit_report_: dict[str, Any] = self._fit_report(
            rows, *(part[evenly(len(part), REPORTED)] for part in (for_training, for_stopping))
        )
        held = self._prepare(calibrating)
        remarks.of_too_few(len(held), self.false_alarm_rate)
        remarks.of_going_back(self.training_summary())
        remarks.of_scores_alike(self.calibration_scores_, calibrating)
        remarks.of_copies(prepared, held[evenly(len(held), REPORTED)], self.false_alarm_rate)
        self._warn_about_training(held)
        for remark in (*map(" ".join, self.training_remarks()), *rows.remarks(training_rows)):
            warnings.warn(remark, UserWarning, stacklevel=2)
        return self

    def _seed(self) -> int:
        return int(parameters.random_state(self.random_state).randint(2**31 - 1))

    def split(self, n: int, *, seed: int | None = None) -> tuple[npt.NDArray[np.intp], ...]:
        """Return which of ``n`` rows :meth:`fit` would calibrate with, stop by and train on, as sorted index arrays.

        Only where ``random_state`` is an integer will ``fit`` draw the same ones again.
        """
        seed = self._seed() if seed is None else seed
        return calibration.split(n, self.false_alarm_rate, self.calibration_fraction, seed)

    def _kept(self, rows: Rows, index: npt.NDArray[np.intp]) -> npt.NDArray[Any] | None:
        """Return the calibration rows that stay with the model."""
        most = min(EXAMINED_ROWS[rows.spec.kind], STORED_CELLS // rows.spec.dimensions)
        return rows.take(index[evenly(len(index), most)]) if self.store_rows and most else None

    @property
    def stored_rows(self) -> int:
        """How many of the user's rows are part of the model, and of its file."""
        return 0 if self.calibration_rows_ is None else len(self.calibration_rows_)

    def _fit_report(self, rows: Rows, training: npt.NDArray[np.intp], held_out: npt.NDArray[np.intp]) -> dict[str, Any]:
        """Return what the rows of training can tell about the fit, for the model's file: JSON-able.

        The two index arrays are rows of training and of stopping, REPORTED each at most.
        """
        scores = self._scores(rows, training)
        return {
            "score": {
                "training": mean_of(scores).to_json(),
                "held_out": mean_of(self.calibration_scores_).to_json(),
                "gap": difference_of_means(scores, self.calibration_scores_).to_json(),
                "spread": float(self.calibration_scores_.std()),
            }
        }

    def training_summary(self) -> dict[str, dict[str, Any]]:
        """Return for each phase of training: steps, the step whose weights were kept, and how often it rolled back.

        ``judged_at`` is what decided which weights to keep, low = better: the held-out rows' loss or, where training is
        watched, what a (geometric) mean AUROC lacks of 1 against outliers made from them; ``auroc_against`` has each
        kind's. Where it rolled back, ``problems`` says when, why, and to which step; where it ended before its last
        step, ``stopped`` says why.
        """
        check_is_fitted(self, "module_")
        summary, before = {}, 0.0
        for phase in dict.fromkeys(record["phase"] for record in self.history_):
            records = [record for record in self.history_ if record["phase"] == phase]
            judged = [record for record in records if "validation" in record]
            problems = [
                f"step {record['step']}: {record['problem']}; back to step {record['rolled_back_to']}"
                for record in records
                if "rolled_back_to" in record
            ]
            # A phase whose every check was a rollback keeps what it began with.
            best = next((record for record in reversed(judged) if record["kept"]), {})
            summary[phase] = {
                "steps": records[-1]["step"],
                "weights_kept_from_step": best.get("step", 0),
                "judged_at": best.get("validation"),
                **({"auroc_against": watched} if (watched := _watched(best)) else {}),
                "rolled_back": len(problems),
                **({"problems": problems} if problems else {}),
                **({"stopped": stopped} if (stopped := records[-1].get("stopped")) else {}),
                "seconds": round(records[-1]["seconds"] - before, 3),  # records count from the run's start
            }
            before = records[-1]["seconds"]
        return summary

    @property
    def training_seconds(self) -> float:
        """How long training took, all phases."""
        return float(sum(phase["seconds"] for phase in self.training_summary().values()))

    def _fit_preparation(self, rows: npt.NDArray[Any]) -> Standardiser | Preparation | None:
        """Learn from rows of training how tables are prepared."""
        if self.spec_.kind == "image" or (self.spec_.details is None and self.scale is None):
            return None
        if self.spec_.details is not None or self.scale == "robust":
            columns = self.spec_.details or [Column(name) for name in self.spec_.names]
            return Preparation.fit(rows.astype(np.float64), columns, self.scale)
        return Standardiser.fit(rows.astype(np.float64))

    def _learnable(self, rows: Tensor, which: str = "rows to learn from", instead: str = INSTEAD) -> Tensor:
        """Return the prepared rows that the detector can learn from."""
        if self.gaps == "learned" or not bool((gaps := rows.flatten(1).isnan().any(1)).any()):
            return rows
        if bool(gaps.all()):
            raise ValueError(
                f"{type(self).__name__} learns from complete rows, and in every one of the {which} a cell is missing. "
                f"Fill them{instead}."
            )
        others = " AE, VAE and MultiscaleDenoiser learn from such rows, too." if instead else ""
        warnings.warn(
            f"{type(self).__name__} learns from complete rows alone: {int(gaps.sum()):,} of {len(rows):,} {which}, in "
            f"which a cell is missing, are left out.{others}",
            UserWarning,
            stacklevel=3,
        )
        return rows[~gaps]

    def _learn_levels(self, held_out: Tensor) -> Levelling | None:
        """Learn from rows held out of training how to compare rows with missing cells to complete ones."""
        if self.spec_.kind == "image":
            return None
        with computing_in(self._scoring_dtype, self.module_):
            return Levelling.fit(self._raw_energy, held_out, torch.from_numpy(self._owner).to(held_out.device))

    @staticmethod
    def _check_room(rows: int, dimensions: int) -> None:
        """Refuse rows that do not fit into memory once as numbers and once prepared, before they are converted."""
        needed, there = (8 + 4) * rows * dimensions, memory_of(torch.device("cpu"))
        if needed > there:
            raise ValueError(
                f"{rows:,} rows of {dimensions:,} cells take {needed / 2**30:,.3g} GiB in training; this machine has "
                f"{there / 2**30:,.3g} GiB. Give fewer rows, or leave columns out."
            )

    def _check_memory(self, spec: InputSpec, settings: Settings) -> None:
        """Refuse a network whose weights cannot be trained on this device, before anything of it is allocated."""
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            weights = sum(parameter.numel() for parameter in self._build(spec, settings).parameters())
        needed, there = COPIES * 4 * weights, memory_of(self._device)
        if needed > there:
            raise ValueError(
                f"A network of {weights:.3g} weights takes {needed / 2**30:,.0f} GiB to train; this device has "
                f"{there / 2**30:,.0f} GiB. Use a smaller capacity, hidden or latent_dim."
            )
        if spec.kind == "table" and needed > LARGE:
            warnings.warn(
                f"Rows of {spec.dimensions:,} cells make a network of {weights:.3g} weights, which takes "
                f"{needed / 2**30:,.1f} GiB to train, and long. If that is too much, leave columns out, or use a "
                "smaller hidden.",
                UserWarning,
                stacklevel=3,
            )
