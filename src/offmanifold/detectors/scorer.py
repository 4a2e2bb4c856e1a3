"""What a fitted detector does: scores, decisions, explanations, a file. The energy's sign flips here, once."""

from __future__ import annotations

import abc
import os
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import OutlierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from offmanifold import calibration, parameters
from offmanifold.data.inputs import Float64Array, InputSpec, Rows
from offmanifold.data.tables import Preparation, Standardiser
from offmanifold.detectors.configured import Configured, Settings
from offmanifold.detectors.explanations import Cells, Explanation, explain
from offmanifold.detectors.levelling import Levelling
from offmanifold.networks.network import initialise
from offmanifold.probability.bounds import bits_per_dim
from offmanifold.probability.missing import filled, missing_cells, nothing_missing
from offmanifold.training.precision import choose_device, computing_in, ordinary

PROBES = 16
# Networks always see passes of one fixed size (the last is padded), so that a row's score is the same to the
# last bit whatever rows come with it.
TABLE_PASS, IMAGE_PASS = 1024, 64
# How many bytes of the user's data are converted at a time: few enough to stay in the processor's cache.
BLOCK_BYTES = 2 * 2**20


def sum_terms(terms: dict[str, Float64Array]) -> Float64Array:
    """Return the score that terms are parts of."""
    total: Float64Array = np.sum(list(terms.values()), axis=0)
    return total


def joined(pieces: Iterator[Tensor]) -> Float64Array:
    """Return pieces of a result as one float64 array."""
    return np.concatenate([piece.double().cpu().numpy() for piece in pieces])


class Scorer(OutlierMixin, Configured, abc.ABC):  # type: ignore[misc]
    """A trained density model over rows; :class:`~offmanifold.detectors.base.OutlierDetector` trains it."""

    key: ClassVar[str]
    # What ``fit`` leaves behind; OutlierDetector says what each is.
    module_: Any
    spec_: InputSpec
    settings_: Settings
    calibration_scores_: Float64Array
    calibration_rows_: npt.NDArray[Any] | None = None
    _device: torch.device
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
    def _energy_terms(self, model: Any, rows: Tensor) -> dict[str, Tensor]:
        """Return energies ``(n,)`` by name, low = normal, whose sum is the energy."""

    def _energy_cells(self, model: Any, rows: Tensor) -> Cells | None:
        """Return what each cell and each latent adds to the energy; None where it is no sum over cells."""
        return None

    # --- rows and energies -----------------------------------------------------------------------------

    @property
    def _network_spec(self) -> InputSpec:
        """What one row is to the network."""
        if isinstance(self._standardiser, Preparation):
            return InputSpec("table", (len(self._standardiser.mean),), "columns")
        return self.spec_

    @property
    def _owner(self) -> npt.NDArray[np.int64]:
        """Which of a table's columns each prepared cell belongs to."""
        if isinstance(self._standardiser, Preparation):
            return self._standardiser.owner
        return np.arange(self.spec_.dimensions)

    def _prepare(self, block: npt.NDArray[Any]) -> Tensor:
        """Turn canonical rows into what the network takes: float32."""
        if self._standardiser is not None:
            block = self._standardiser.transform(block)
        return torch.from_numpy(np.ascontiguousarray(block, dtype=np.float32))

    def _inverse(self, rows: Tensor) -> Float64Array:
        """Turn what the network gives into canonical rows."""
        block: Float64Array = rows.double().cpu().numpy()
        return block if self._standardiser is None else self._standardiser.inverse(block)

    def _restore(self, rows: Tensor, like: InputSpec | None = None) -> Any:
        """Turn what the network gives into the user's units: an array, or a frame of mixed columns.

        Images in the layout of ``like``, by default that of training, and their pixels in [0, 1].
        """
        if self.spec_.kind == "image":
            rows = rows.clamp(0, 1)
        return (like or self.spec_).present(self._inverse(rows))

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

    @ordinary()
    def _new_module(self, spec: InputSpec, settings: Settings, seed: int) -> nn.Module:
        # Construction draws from PyTorch's global generator; the user's stream is put back afterwards, and
        # every weight is drawn again from our own.
        with torch.random.fork_rng(devices=[]):
            model = self._build(spec, settings)
        initialise(model, torch.Generator().manual_seed(seed + 2))
        return model.to(self._device)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _set_input_attributes(self) -> None:
        for name in ("n_features_in_", "feature_names_in_"):
            self.__dict__.pop(name, None)  # of an earlier fit
        if self.spec_.kind == "table":
            self.n_features_in_ = self.spec_.shape[0]
            if self.spec_.columns is not None:
                self.feature_names_in_ = np.array(self.spec_.columns, dtype=object)

    @property
    def offset_(self) -> float:
        """The score below which :meth:`predict` says −1: of ``false_alarm_rate`` as it is now, without another fit."""
        rate = parameters.real("false_alarm_rate", self.false_alarm_rate, above=0, below=1)
        return calibration.threshold(self.calibration_scores_, rate)

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
        with ordinary(), torch.no_grad():
            for part, real in self._passes(rows, index):
                yield compute(self.module_, self._shown(part))[:real]

    @property
    def _scoring_dtype(self) -> torch.dtype:
        # As it was when the calibration rows were scored; files of before it was kept say it once.
        chosen = self.settings_.get("precision", self.precision)
        return torch.bfloat16 if chosen == "bfloat16" else torch.float32

    def _fitted_rows(self, X: Any) -> Rows:
        check_is_fitted(self, "module_")
        return Rows(X, self.spec_, type(self).__name__)

    @ordinary()
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
        """Return ``score_samples(X) − offset_``: negative exactly where :meth:`predict` says −1.

        Where too few rows calibrate to promise ``false_alarm_rate``, ``offset_`` is −inf, and this +inf for every row:
        to rank rows take :meth:`score_samples`.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> npt.NDArray[np.int64]:
        """Return −1 for outliers, those with a p-value of at most ``false_alarm_rate``, and +1 for the rest."""
        return np.where(self.score_samples(X) >= self.offset_, 1, -1)

    def p_values(self, X: Any) -> Float64Array:
        """Return conformal p-values ``(n,)``: for a normal row, P(p ≤ α) ≤ α (see ``offmanifold.calibration``)."""
        return calibration.p_values(self.calibration_scores_, self.score_samples(X))

    @ordinary()
    def explain(self, X: Any) -> Explanation:
        """Say why rows score as they do: what each cell adds to the score, and what would have to change.

        Returns
        -------
        Explanation
            ``contributions`` in the layout of ``X``, ``latent`` terms, ``nearest`` normal version of each row.

        Notes
        -----
        With ``latent`` and ``base`` contributions sum to the score exactly where it is a sum over cells (squared and
        absolute errors, likelihoods); for other scores they are integrated gradients along the straight path from the
        nearest normal row, whose ``residual`` is reported.
        """
        return explain(self, X)

    def bits_per_dim(self, X: Any, *, discrete_pixels: bool = False) -> Float64Array:
        """Return −score / (D ln 2): bits per dimension ``(n,)``, for scores that are a log-likelihood or its bound.

        Parameters
        ----------
        X : array-like
        discrete_pixels : bool
            False: of the density on the scale that was modelled ([0, 1] for images), or of the probability under a
            Bernoulli likelihood. True, for images and densities alone: of 256 discrete grey levels, which is 8 more.

        Raises
        ------
        ValueError
            For scores in another unit or that are a part of a bound (``score_by`` "kl" or "reconstruction"), and for
            discrete pixels of a table or a Bernoulli likelihood.
        """
        rows = self._fitted_rows(X)
        if self.score_unit != "nats":
            raise ValueError(f"{type(self).__name__}'s score is in {self.score_unit}, not in nats.")
        if (part := self.settings_.get("score_by")) in ("kl", "reconstruction"):
            raise ValueError(
                f"score_by={part!r} is one term of a bound and no log-likelihood: it has no bits per dimension. Use "
                "score_by='elbo' or 'iwae'."
            )
        if discrete_pixels and self.spec_.kind != "image":
            raise ValueError("discrete_pixels=True is for images; the detector was trained on a table.")
        if discrete_pixels and self.settings_.get("likelihood") == "bernoulli":
            raise ValueError(
                "discrete_pixels=True turns a density on [0, 1] into a probability of grey levels; "
                "likelihood='bernoulli' is no density. Use discrete_pixels=False, or likelihood='gaussian'."
            )
        scores = torch.from_numpy(self._scores(rows))
        return bits_per_dim(scores, self._network_spec.dimensions, discrete_pixels=discrete_pixels).numpy()

    def _generator(self, random_state: int | np.random.RandomState | None) -> torch.Generator:
        """Return a generator on the model's device."""
        seed = int(parameters.random_state(random_state).randint(2**31 - 1))
        return torch.Generator(self._device).manual_seed(seed)

    @ordinary()
    def _probe_rows(self) -> Tensor:
        """Return 16 random rows (none of the user's) that a saved model is tried on when loaded."""
        generator = torch.Generator().manual_seed(PROBES)
        if self.spec_.kind == "image":
            return torch.rand(PROBES, *self.spec_.shape, generator=generator)
        return torch.randn(PROBES, *self._network_spec.shape, generator=generator)

    @ordinary()
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
        if (levelling := state.pop("_levelling", None)) is not None:  # which may be on a GPU, too
            state["_levels"] = {name: tensor.cpu().numpy() for name, tensor in levelling.tensors().items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        weights, levels = state.pop("_weights", None), state.pop("_levels", None)
        super().__setstate__(state)
        if levels is not None:
            self._levelling = Levelling(**{name: torch.tensor(array) for name, array in levels.items()})
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
