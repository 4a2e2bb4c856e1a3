"""What every detector shares: fit → calibrate → score → decide. The energy's sign flips here, once."""

from __future__ import annotations

import abc
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from offmanifold import calibration
from offmanifold.data.columns import Column
from offmanifold.data.inputs import Float64Array, InputSpec, Rows, evenly
from offmanifold.data.tables import Preparation, Standardiser
from offmanifold.detectors.configured import Configured, Settings
from offmanifold.detectors.explanations import Cells, Explanation, explain
from offmanifold.detectors.levelling import Levelling
from offmanifold.measures.estimates import difference_of_means, mean_of
from offmanifold.measures.shift import Moments, compared_parts
from offmanifold.networks.network import initialise
from offmanifold.probability.bounds import bits_per_dim
from offmanifold.probability.missing import filled, missing_cells, nothing_missing
from offmanifold.training.checkpoints import Checkpointer, fingerprint, saved_seed
from offmanifold.training.loop import History, train
from offmanifold.training.phases import Phase
from offmanifold.training.precision import choose_device, choose_dtype, computing_in, memory_of
from offmanifold.training.progress import Progress
from offmanifold.training.threads import limited_to

# One row each to calibrate with and to stop by, and two to learn from.
FEWEST_ROWS = 4
PROBES = 16
# Networks always see passes of one fixed size (the last is padded), so that a row's score is the same to the
# last bit whatever rows come with it.
TABLE_PASS, IMAGE_PASS = 1024, 64
# Rows of training, and of stopping, that the report on a fit looks at.
REPORTED = 1000
# Of each weight in training: itself, its gradient, two moments, and the best one so far.
COPIES = 5
# How many bytes of the user's data are converted at a time: few enough to stay in the processor's cache.
BLOCK_BYTES = 2 * 2**20


def sum_terms(terms: dict[str, Float64Array]) -> Float64Array:
    """Return the score that terms are parts of."""
    total: Float64Array = np.sum(list(terms.values()), axis=0)
    return total


def joined(pieces: Iterator[Tensor]) -> Float64Array:
    """Return pieces of a result as one float64 array."""
    return np.concatenate([piece.double().cpu().numpy() for piece in pieces])


def labelled(prepared: Tensor, labels: Tensor | None, index: npt.NDArray[np.intp]) -> Tensor:
    """Return prepared rows with their labels, if there are any, as further columns."""
    return prepared if labels is None else torch.cat([prepared.flatten(1), labels[index]], 1)


class OutlierDetector(OutlierMixin, Configured, abc.ABC):  # type: ignore[misc]
    """Base of all detectors: scikit-learn's outlier-detector interface over a PyTorch density model.

    A concrete detector stores its hyper-parameters in ``__init__`` and writes :meth:`_settings`,
    :meth:`_build`, :meth:`_phases` and :meth:`_energy_terms`; concrete detectors are final.

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
    offset_ : float
        ``decision_function = score_samples − offset_``.
    history_ : list of dict
        One record a check of training.
    rows_ : dict
        How many rows went to training, to stopping, and to calibration.
    fit_report_ : dict
        Mean scores of training rows and of calibration rows, and the gap between them, with intervals; more where a
        detector has more to tell.
    training_moments_ : Moments or None
        Mean and spread of each prepared cell, or each patch of an image, over the training rows; None from old files.
    """

    key: ClassVar[str]
    training_moments_: Moments | None = None
    # The user's negatives, prepared, while training lasts.
    _negatives: Tensor | None = None
    # What is done with missing cells, NaN in prepared rows: energies and losses are of the cells seen ("learned"), or
    # energies alone are ("scored"), or the detector is never shown them ("filled": with means). Rows with gaps are left
    # out of training except where they are "learned".
    gaps: ClassVar[Literal["learned", "scored", "filled"]] = "filled"
    # How tables are prepared, and rows with missing cells compared to complete ones: learned by ``fit``.
    _standardiser: Standardiser | Preparation | None = None
    _levelling: Levelling | None = None

    # --- what a concrete detector writes ---------------------------------------------------------------

    @property
    @abc.abstractmethod
    def score_unit(self) -> str:
        """What a score is measured in."""

    @abc.abstractmethod
    def _build(self, spec: InputSpec, settings: Settings) -> nn.Module:
        """Build the untrained module."""

    @abc.abstractmethod
    def _phases(self, model: Any, settings: Settings) -> list[Phase]:
        """Say how the module is trained."""

    @abc.abstractmethod
    def _energy_terms(self, model: Any, rows: Tensor) -> dict[str, Tensor]:
        """Return energies ``(n,)`` by name, low = normal, whose sum is the energy."""

    def _energy_cells(self, model: Any, rows: Tensor) -> Cells | None:
        """Return what each cell and each latent adds to the energy; None where it is no sum over cells."""
        return None

    def _settle(self, rows: Tensor, settings: Settings) -> None:
        """Look at the prepared training rows: raise ``ValueError`` where they do not suit, add settings they decide."""

    def _take_labels(self, y: Any, training: npt.NDArray[np.intp], rows: int, settings: Settings) -> Tensor | None:
        """Return what training is told about each row, ``(rows, k)``: further columns of what losses see."""
        return None

    def _take_negatives(self, negatives: Any, rows: Tensor) -> None:
        """Keep the user's negatives, prepared, as ``_negatives`` while training lasts."""
        if negatives is not None:
            raise TypeError(
                f"{type(self).__name__} learns from normal rows alone and takes no negatives. Use NegativeVAE "
                "(negative-vae), which does."
            )
        self._negatives = None

    def _finish(self, model: Any, training: Tensor, held_out: Tensor, settings: Settings) -> None:
        """Complete the trained module from the rows it was trained on and stopped by; may add settings."""

    def _warn_about_training(self) -> None:
        """Warn of what ``history_`` shows that the user should know."""

    # --- learning --------------------------------------------------------------------------------------

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
            What columns of a frame are, where their type does not tell: "number", "category", "boolean" or "date".
        checkpoint : path, optional
            Where to save the run from time to time; Ctrl-C then saves before it stops.
        resume : bool
            Go on from ``checkpoint`` if it exists, bit for bit as if the run had never stopped.
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
            If the loss becomes non-finite or explodes.

        Notes
        -----
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
        path = Path(checkpoint) if checkpoint is not None else None
        resume = resume and path is not None and path.exists()
        seed = (
            saved_seed(path)  # the run that is continued keeps its own
            if resume and path is not None
            else self._seed()
        )
        for_calibration, for_stopping, for_training = self.split(len(rows), seed=seed)

        self._device = choose_device(self.device)
        self._check_room(len(rows), rows.spec.dimensions)
        rows.learn(for_training)
        self.spec_ = rows.spec
        training_rows = rows.take(for_training)
        self._standardiser = self._fit_preparation(training_rows)
        settings = self._resolved(self._network_spec, len(rows))
        self.settings_ = settings
        labels = self._take_labels(y, for_training, len(rows), settings)
        self._check_room(len(rows), self._network_spec.dimensions)
        prepared = self._prepare(training_rows)
        self.training_moments_ = Moments.of(compared_parts(prepared))
        data = self._learnable(labelled(prepared, labels, for_training))
        held_out = self._learnable(labelled(self._prepare(rows.take(for_stopping)), labels, for_stopping))
        self._settle(data, settings)
        self._take_negatives(negatives, data)
        rows.take(for_calibration)  # a bad value among them is better found now than after training

        self._check_memory(self._network_spec, settings)
        model = self._new_module(self._network_spec, settings, seed)
        checkpointer = None
        if path is not None:
            beside = () if self._negatives is None else (self._negatives,)
            digest = fingerprint(
                {"detector": self.key, "precision": self.precision, **settings}, data, held_out, *beside
            )
            checkpointer = Checkpointer(path, digest, seed, checkpoint_every)
        complete = missing_cells(data) is None and missing_cells(held_out) is None
        try:
            with limited_to(self._threads(model, settings)), nothing_missing(complete):
                self.history_: History = train(
                    model,
                    self._phases(model, settings),
                    data.to(self._device),
                    held_out.to(self._device),
                    seed=seed,
                    dtype=choose_dtype(self.precision, model, self._device),
                    checkpointer=checkpointer,
                    resume=resume,
                    progress=Progress(self.verbose),
                )
        finally:
            self._negatives = None  # rows of the user's are no part of a model, nor of a run that failed
        self.module_: Any = model.requires_grad_(False)
        with torch.no_grad():
            self._finish(model, data.to(self._device), held_out.to(self._device), settings)
            without_labels = held_out if labels is None else held_out[:, : -labels.shape[1]]
            self._levelling = self._learn_levels(without_labels.to(self._device))
        self.rows_ = {
            "training": len(for_training),
            "stopping": len(for_stopping),
            "calibration": len(for_calibration),
        }
        self._set_input_attributes()
        self._calibrate(np.sort(self._scores(rows, for_calibration)))
        self.fit_report_: dict[str, Any] = self._fit_report(
            rows, *(part[evenly(len(part), REPORTED)] for part in (for_training, for_stopping))
        )
        self._warn_if_too_few()
        self._warn_about_training()
        for remark in rows.remarks(training_rows.astype(np.float64)):
            warnings.warn(remark, UserWarning, stacklevel=2)
        return self

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def split(self, n: int, *, seed: int | None = None) -> tuple[npt.NDArray[np.intp], ...]:
        """Return which of ``n`` rows :meth:`fit` would calibrate with, stop by and train on, as sorted index arrays.

        Only where ``random_state`` is an integer will ``fit`` draw the same ones again.
        """
        seed = self._seed() if seed is None else seed
        return calibration.split(n, self.false_alarm_rate, self.calibration_fraction, seed)

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
        """Return for each phase of training: steps, the step whose weights were kept, and how often it rolled back."""
        check_is_fitted(self, "module_")
        summary = {}
        for phase in dict.fromkeys(record["phase"] for record in self.history_):
            records = [record for record in self.history_ if record["phase"] == phase]
            judged = [record for record in records if "validation" in record]
            # A phase whose every check was a rollback keeps what it began with.
            best = next((record for record in reversed(judged) if record["kept"]), {})
            summary[phase] = {
                "steps": records[-1]["step"],
                "weights_kept_from_step": best.get("step", 0),
                "judged_at": best.get("validation"),
                "rolled_back": len(records) - len(judged),
                "seconds": records[-1]["seconds"],
            }
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

    @property
    def _network_spec(self) -> InputSpec:
        """What one row is to the network."""
        if isinstance(self._standardiser, Preparation):
            return InputSpec("table", (len(self._standardiser.mean),), "columns")
        return self.spec_

    def _learnable(self, rows: Tensor) -> Tensor:
        """Return the prepared rows that the detector can learn from."""
        if self.gaps == "learned" or not bool((gaps := rows.flatten(1).isnan().any(1)).any()):
            return rows
        if bool(gaps.all()):
            raise ValueError(
                f"{type(self).__name__} learns from complete rows, and in every row of these a cell is missing. Fill "
                "them, leave columns out, or use AE, VAE or MultiscaleDenoiser."
            )
        warnings.warn(
            f"{type(self).__name__} learns from complete rows alone: {int(gaps.sum()):,} of {len(rows):,} rows, in "
            "which a cell is missing, are left out. AE, VAE and MultiscaleDenoiser learn from such rows, too.",
            UserWarning,
            stacklevel=3,
        )
        return rows[~gaps]

    def _learn_levels(self, held_out: Tensor) -> Levelling | None:
        """Learn from rows held out of training how to compare rows with missing cells to complete ones."""
        if self.spec_.kind == "image":
            return None
        with computing_in(self._scoring_dtype, self.module_):
            owner = (
                torch.from_numpy(self._standardiser.owner)
                if isinstance(self._standardiser, Preparation)
                else torch.arange(held_out.shape[1])
            ).to(held_out.device)
            return Levelling.fit(self._raw_energy, held_out, owner)

    def _shown(self, rows: Tensor) -> Tensor:
        """Return prepared rows as the detector takes them."""
        return filled(rows) if self.gaps == "filled" else rows

    def _raw_energy(self, rows: Tensor) -> Tensor:
        return torch.stack(list(self._energy_terms(self.module_, self._shown(rows)).values())).sum(0)

    def _levelled_terms(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the energy's terms for prepared rows, comparable whatever is missing.

        What makes them comparable is added to the first; a complete row's are what ``_energy_terms`` gives.
        """
        complete = missing_cells(rows) is None
        with nothing_missing(complete):
            terms = self._energy_terms(self.module_, self._shown(rows))
        if not complete and self._levelling is not None:
            raw = torch.stack(list(terms.values())).sum(0)
            first = next(iter(terms))
            terms[first] = terms[first] + (self._levelling(raw, rows) - raw)
        return terms

    def _energy(self, rows: Tensor) -> Tensor:
        """Return energies ``(n,)`` of prepared rows."""
        return torch.stack(list(self._levelled_terms(rows).values())).sum(0)

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

    def _new_module(self, spec: InputSpec, settings: Settings, seed: int) -> nn.Module:
        # Construction draws from PyTorch's global generator; the user's stream is put back afterwards, and
        # every weight is drawn again from our own.
        with torch.random.fork_rng(devices=[]):
            model = self._build(spec, settings)
        initialise(model, torch.Generator().manual_seed(seed + 2))
        return model.to(self._device)

    def _prepare(self, block: npt.NDArray[Any]) -> Tensor:
        """Turn canonical rows into what the network takes: float32."""
        if self._standardiser is not None:
            block = self._standardiser.transform(block)
        return torch.from_numpy(np.ascontiguousarray(block, dtype=np.float32))

    def _inverse(self, rows: Tensor) -> Float64Array:
        """Turn what the network gives into canonical rows."""
        block: Float64Array = rows.double().cpu().numpy()
        return block if self._standardiser is None else self._standardiser.inverse(block)

    def _restore(self, rows: Tensor) -> Any:
        """Turn what the network gives into the user's units: an array in their layout, or a frame of mixed columns."""
        return self.spec_.present(self._inverse(rows))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _set_input_attributes(self) -> None:
        if self.spec_.kind == "table":
            self.n_features_in_ = self.spec_.shape[0]
            if self.spec_.columns is not None:
                self.feature_names_in_ = np.array(self.spec_.columns, dtype=object)

    def _calibrate(self, scores: Float64Array) -> None:
        self.calibration_scores_ = scores
        self.offset_ = calibration.threshold(scores, self.false_alarm_rate)

    def _warn_if_too_few(self) -> None:
        n = len(self.calibration_scores_)
        smallest = calibration.smallest_rate(n)
        if smallest > self.false_alarm_rate:
            warnings.warn(
                f"{n} calibration row{'s' if n > 1 else ''} cannot promise false_alarm_rate="
                f"{self.false_alarm_rate:g}: the smallest rate they can promise is {smallest:.3g}, so predict will "
                "call nothing an outlier. Give more rows, or raise false_alarm_rate or calibration_fraction.",
                UserWarning,
                stacklevel=3,
            )

    # --- scoring ---------------------------------------------------------------------------------------

    def _passes(self, rows: Rows, index: npt.NDArray[np.intp] | None = None) -> Iterator[tuple[Tensor, int]]:
        """Yield prepared rows in passes of one fixed size, with how many of them are real."""
        size = IMAGE_PASS if self.spec_.kind == "image" and self._device.type == "cpu" else TABLE_PASS
        block_rows = max(1, BLOCK_BYTES // (8 * self._network_spec.dimensions) // size) * size
        total = len(rows) if index is None else len(index)
        for start in range(0, total, block_rows):
            where = slice(start, min(start + block_rows, total)) if index is None else index[start : start + block_rows]
            for part in torch.split(self._prepare(rows.take(where)), size):
                real = len(part)
                if real < size:
                    part = torch.cat([part, part[-1:].expand(size - real, *part.shape[1:])])
                yield part.to(self._device), real

    def _through(
        self, compute: Callable[[Any, Tensor], Tensor], rows: Rows, index: npt.NDArray[np.intp] | None = None
    ) -> Iterator[Tensor]:
        """Yield what ``compute(module, prepared rows)`` gives, a pass at a time."""
        with torch.no_grad():
            for part, real in self._passes(rows, index):
                yield compute(self.module_, self._shown(part))[:real]

    @property
    def _scoring_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.precision == "bfloat16" else torch.float32

    def _fitted_rows(self, X: Any) -> Rows:
        check_is_fitted(self, "module_")
        return Rows(X, self.spec_, type(self).__name__)

    @torch.no_grad()
    def _terms(self, rows: Rows, index: npt.NDArray[np.intp] | None = None) -> dict[str, Float64Array]:
        """Score terms, high = normal: minus the energy's terms."""
        parts: dict[str, list[Float64Array]] = {}
        with computing_in(self._scoring_dtype, self.module_):
            for rows_in, real in self._passes(rows, index):
                for name, energy in self._levelled_terms(rows_in).items():
                    parts.setdefault(name, []).append(-energy[:real].double().cpu().numpy())
        return {name: np.concatenate(values) for name, values in parts.items()}

    def _scores(self, rows: Rows, index: npt.NDArray[np.intp] | None = None) -> Float64Array:
        return sum_terms(self._terms(rows, index))

    def score_samples(self, X: Any) -> Float64Array:
        """Return how normal each row is: ``(n,)`` float64, high = normal, in ``score_unit``.

        A row's score depends on the row and the model alone: not on other rows, its position, or earlier
        calls. Missing cells (NaN or null) of a table take no part in it, and it is comparable whatever is missing.
        Memory is bounded whatever the size of ``X``.
        """
        return self._scores(self._fitted_rows(X))

    def score_terms(self, X: Any) -> dict[str, Float64Array]:
        """Return the parts of the score by name, ``(n,)`` each; their sum is :meth:`score_samples`."""
        return self._terms(self._fitted_rows(X))

    def decision_function(self, X: Any) -> Float64Array:
        """Return ``score_samples(X) − offset_``: negative exactly where :meth:`predict` says −1."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """Return −1 for outliers, those with a p-value of at most ``false_alarm_rate``, and +1 for the rest."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: Any) -> Float64Array:
        """Return conformal p-values ``(n,)``: for a normal row, P(p ≤ α) ≤ α (see ``offmanifold.calibration``)."""
        return calibration.p_values(self.calibration_scores_, self.score_samples(X))

    def explain(self, X: Any) -> Explanation:
        """Say why rows score as they do: what each cell adds to the score, and what would have to change.

        Returns
        -------
        Explanation
            ``contributions`` in the user's layout, ``latent`` terms, ``nearest`` normal version of each row.

        Notes
        -----
        Contributions sum to the score exactly where it is a sum over cells (squared and absolute errors, likelihoods);
        for other scores they are integrated gradients along the straight path from the nearest normal row, whose
        ``residual`` is reported.
        """
        return explain(self, X)

    def bits_per_dim(self, X: Any, *, discrete_pixels: bool = False) -> Float64Array:
        """Return −score / (D ln 2): bits per dimension ``(n,)``, for scores in nats.

        Parameters
        ----------
        X : array-like
        discrete_pixels : bool
            False: of the density on the scale that was modelled ([0, 1] for images). True, for images alone:
            of 256 discrete grey levels, which is 8 more.
        """
        rows = self._fitted_rows(X)
        if self.score_unit != "nats":
            raise ValueError(f"{type(self).__name__}'s score is in {self.score_unit}, not in nats.")
        if discrete_pixels and self.spec_.kind != "image":
            raise ValueError("discrete_pixels=True is for images; the detector was trained on a table.")
        scores = torch.from_numpy(self._scores(rows))
        return bits_per_dim(scores, self._network_spec.dimensions, discrete_pixels=discrete_pixels).numpy()

    def _generator(self, random_state: int | np.random.RandomState | None) -> torch.Generator:
        """Return a generator on the model's device."""
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        return torch.Generator(self._device).manual_seed(seed)

    def _probe_rows(self) -> Tensor:
        """Return 16 random rows (none of the user's) that a saved model is tried on when loaded."""
        generator = torch.Generator().manual_seed(PROBES)
        if self.spec_.kind == "image":
            return torch.rand(PROBES, *self.spec_.shape, generator=generator)
        return torch.randn(PROBES, *self._network_spec.shape, generator=generator)

    @torch.no_grad()
    def _probe_scores(self, probes: Tensor) -> Float64Array:
        terms = self._energy_terms(self.module_, probes.to(self._device))
        return -torch.stack([term.double() for term in terms.values()]).sum(0).cpu().numpy()

    # --- keeping ---------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted detector to one safetensors file, whole or not at all.

        :func:`offmanifold.load` reads it back; nothing in it is ever executed.
        """
        from offmanifold import storage

        storage.save(self, path)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if "module_" in state:  # weights only: modules with parametrisations cannot be pickled
            weights = state.pop("module_").state_dict()
            state["_weights"] = {name: tensor.cpu().numpy() for name, tensor in weights.items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        weights = state.pop("_weights", None)
        super().__setstate__(state)
        if weights is not None:
            self._load_weights({name: torch.tensor(np.array(array)) for name, array in weights.items()})

    def _load_weights(self, weights: dict[str, Tensor]) -> None:
        """Rebuild the module from ``settings_`` and ``spec_`` and give it ``weights``."""
        self._device = choose_device(self.device)
        model = self._new_module(self._network_spec, self.settings_, seed=0)
        model.load_state_dict(weights)
        self.module_ = model.eval().requires_grad_(False)
        if self._levelling is not None:
            self._levelling = self._levelling.to(self._device)
