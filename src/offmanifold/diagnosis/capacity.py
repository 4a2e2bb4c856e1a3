"""How large should the model be? Grow it until held-out rows say that it is enough (P0 §3.2): no outliers needed."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import clone

from offmanifold import atomic, parameters
from offmanifold.data.inputs import Rows, evenly
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.negatives import rows_given
from offmanifold.measures.estimates import Estimate, difference_of_means, mean_of
from offmanifold.networks import choose

WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
# Rows whose scores decide, and training rows they are compared with.
MOST_HELD_OUT = 5000
Scores = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One size that was tried.

    Attributes
    ----------
    latent_dim : int
    width : float
        Factor on channels or hidden units.
    score : Estimate
        Mean score of the held-out rows, nats.
    gain : Estimate or None
        Over the best size before it, row by row; None for the first. Its interval is over rows, not over seeds.
    gap : Estimate
        Mean score of training rows minus that of held-out ones.
    active : int or None
        Active latents, where the model has a posterior.
    gamma : float or None
        The decoder's variance.
    weights : int
        Parameters of the network.
    seconds : float
    verdict : str
        "best so far", or why it is not.
    """

    latent_dim: int
    width: float
    score: Estimate
    gain: Estimate | None
    gap: Estimate
    active: int | None
    gamma: float | None
    weights: int
    seconds: float
    verdict: str

    @property
    def better(self) -> bool:
        """Whether it was the best so far."""
        return self.verdict == "best so far"


@dataclasses.dataclass(frozen=True)
class Suggestion:
    """The size to use, and what was tried.

    Attributes
    ----------
    parameters : dict
        For ``detector.set_params``: ``latent_dim``, ``capacity`` or ``hidden``, and the ``random_state`` whose
        calibration rows no candidate has seen.
    candidates : tuple of Candidate
    """

    parameters: dict[str, Any]
    candidates: tuple[Candidate, ...]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return columns and rows of the table that was decided from."""
        columns = ["latents", "width", "held-out score (nats)", "gain", "training − held-out", "active", "γ", "verdict"]
        rows = [
            [
                str(c.latent_dim),
                f"{c.width:g}",
                _shown(c.score),
                "–" if c.gain is None else _shown(c.gain),
                _shown(c.gap),
                "–" if c.active is None else str(c.active),
                "–" if c.gamma is None else f"{c.gamma:.3g}",
                c.verdict,
            ]
            for c in self.candidates
        ]
        return columns, rows


def _shown(estimate: Estimate) -> str:
    return f"{estimate.value:.4g} [{estimate.low:.4g}, {estimate.high:.4g}]"


def suggest_capacity(
    detector: OutlierDetector,
    X: Any,
    *,
    columns: Mapping[str, str] | None = None,
    negatives: Any = None,
    widths: Sequence[float] = WIDTHS,
    latent_dims: Sequence[int] | None = None,
    state: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] | None = None,
) -> Suggestion:
    """Grow latent size and width until held-out rows gain nothing more, or only because training rows are memorised.

    Parameters
    ----------
    detector : unfitted detector with latents and a score in nats, such as VAE
        All its other hyper-parameters are kept.
    X : array-like
        Normal rows, as for ``fit``. The rows that ``fit`` will calibrate with are left out of the search; a fifth of
        the others, at most 5 000, is held out of every training and compared row by row.
    columns : mapping of str to str, optional
    negatives : array-like or path, optional
        As for ``fit``.
    widths : increasing sequence of float
        Factors on a convolutional network's channels, or on a dense one's hidden units.
    latent_dims : increasing sequence of int, optional
        Default: 2, 4, 8, … up to the number of columns, at most 64; 8, 16, … 256 for images.
    state : path, optional
        A file that keeps what is done: interrupted, the same call goes on from there.
    report : callable, optional
        Is told about each candidate.

    Returns
    -------
    Suggestion

    Notes
    -----
    From the smallest size on, the next latent size is tried, then the next width, again and again. A larger model is
    better where the 95 % interval of the mean gain on held-out rows is above 0 and the gap between training and
    held-out rows widens by less than that gain; of models that are no better, the smaller stays. The search is greedy:
    it does not come back to smaller ones.

    Each size is fitted once. The interval is over held-out rows and knows nothing of the seed: two fits of the same
    size differ beyond it about two times in five, so a gain that is barely above 0 may be the seed's. Search again with
    another ``random_state`` before a close choice counts.

    Raises
    ------
    TypeError
        For a detector without latents, or whose score is not in nats.
    ValueError
        For a detector of labels, for too few rows, and sizes or a state that cannot be used.
    """
    own = detector.get_params()
    if "latent_dim" not in own or detector.score_unit != "nats":
        raise TypeError(
            f"suggest_capacity compares likelihoods of models with latents; {type(detector).__name__} has none "
            "(an autoencoder's error only falls with more latents). Use VAE."
        )
    if hasattr(detector, "predict_label"):
        raise ValueError(
            f"suggest_capacity fits without labels, and so would size a model of another task; got detector="
            f"{type(detector).__name__}. Compare sizes by predict_label on rows held out, or search with VAE."
        )
    if own.get("score_by") in ("kl", "reconstruction"):
        raise ValueError(
            f"suggest_capacity compares bounds on log p(x); score_by={own['score_by']!r} is a part of one, which falls "
            "or rises with the latents by itself. Search with score_by='elbo'."
        )
    rows = Rows(X, owner=type(detector).__name__, columns=columns)
    latent_dims = _latent_dims(rows) if latent_dims is None else latent_dims
    latent_dims = _increasing("latent_dims", latent_dims, parameters.integer)
    widths = _increasing("widths", widths, lambda name, value: parameters.real(name, value, above=0))
    state = None if state is None else Path(state)
    stored = _read(state)
    random_state = own["random_state"]
    if not isinstance(random_state, int | np.integer):
        # The final fit must set the same rows aside, and so must a search that goes on.
        random_state = stored.get("random_state", int(np.random.default_rng().integers(2**31 - 1)))
    detector = clone(detector).set_params(random_state=int(random_state))
    return _Search(detector, rows, negatives, latent_dims, widths, state, stored, report).run()


def _read(state: Path | None) -> dict[str, Any]:
    """Return what an earlier search kept, or nothing."""
    if state is None or not state.is_file():
        return {}
    try:
        stored = json.loads(state.read_text())
        return {"fingerprint": str(stored["fingerprint"]), "random_state": int(stored["random_state"]),
                "candidates": dict(stored["candidates"])}  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{state} is not the state of a search for a capacity: {error}.") from error


def _latent_dims(rows: Rows) -> list[int]:
    if rows.spec.kind == "image":
        return [8, 16, 32, 64, 128, 256]
    most = min(64, rows.spec.dimensions)
    return [size for size in (2, 4, 8, 16, 32, 64) if size < most] + [most]


def _increasing(name: str, values: Sequence[Any], check: Callable[[str, Any], Any]) -> list[Any]:
    if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray):
        raise parameters.InvalidParameter(f"{name} must be a list of sizes; got {values!r}.")
    checked = [check(f"{name}[{i}]", value) for i, value in enumerate(values)]
    if not checked or any(later <= earlier for earlier, later in itertools.pairwise(checked)):
        raise ValueError(f"{name} must increase; got {list(values)!r}.")
    return checked


class _Search:
    def __init__(
        self,
        detector: OutlierDetector,
        rows: Rows,
        negatives: Any,
        latent_dims: list[int],
        widths: list[float],
        state: Path | None,
        stored: dict[str, Any],
        report: Callable[[str], None] | None,
    ) -> None:
        self.detector, self.latent_dims, self.widths, self.report = detector, latent_dims, widths, report
        self.settings = detector._resolved(rows.spec, len(rows))
        _, *searched = detector.split(len(rows))
        index = np.sort(np.concatenate(searched))
        held_out = np.random.default_rng(0).permutation(len(index))[: min(MOST_HELD_OUT, len(index) // 5)]
        if len(held_out) < 2:
            raise ValueError(f"suggest_capacity needs at least 20 rows to compare sizes on; got {len(rows)}.")
        rows.learn(np.delete(index, held_out))
        # As they came: a fit learns from its own rows what columns hold.
        self.negatives = negatives
        self.rows, self.for_training, self.for_judging = rows, np.delete(index, held_out), index[np.sort(held_out)]
        self.state = state
        self.checkpoint = None if state is None else state.with_suffix(".candidate")
        self.fingerprint = self._fingerprint()
        self.known: dict[str, Any] = stored.get("candidates", {})
        if stored and stored["fingerprint"] != self.fingerprint:
            raise ValueError(
                f"{state} belongs to a search with other data or settings. Go on with the very same ones, or delete it "
                "to start anew."
            )
        if self.checkpoint is not None and not stored:
            self.checkpoint.unlink(missing_ok=True)  # of a search that was given up
            self._write_state()

    def run(self) -> Suggestion:
        """Walk the two axes by turns."""
        place = (0, 0)
        best, best_scores = self._try(place, None, None)
        candidates = [best]
        axis, failures = 0, 0
        while failures < 2:
            step = (place[0] + (axis == 0), place[1] + (axis == 1))
            if step[0] < len(self.latent_dims) and step[1] < len(self.widths):
                candidate, scores = self._try(step, best, best_scores)
                candidates.append(candidate)
                if candidate.better:
                    place, best, best_scores, failures = step, candidate, scores, 0
                    continue
            failures, axis = failures + 1, 1 - axis
        found = self._parameters(best.latent_dim, best.width)
        return Suggestion(found | {"random_state": self.detector.get_params()["random_state"]}, tuple(candidates))

    def _parameters(self, latent_dim: int, width: float) -> dict[str, Any]:
        if self.settings["network"] not in choose.DENSE:
            return {"latent_dim": latent_dim, "capacity": width}
        hidden = tuple(max(1, round(units * width)) for units in self.settings["hidden"])
        return {"latent_dim": latent_dim, "hidden": hidden}

    def _try(
        self, place: tuple[int, int], best: Candidate | None, best_scores: Scores | None
    ) -> tuple[Candidate, Scores]:
        latent_dim, width = self.latent_dims[place[0]], self.widths[place[1]]
        key = f"{latent_dim}/{width:g}"
        if key not in self.known:
            self.known[key] = self._train(latent_dim, width)
            self._write_state()
        facts = self.known[key]
        scores = np.array(facts["held_out"])
        gap = difference_of_means(facts["training"], scores)
        gain = None if best_scores is None else mean_of(scores - best_scores)
        candidate = Candidate(
            latent_dim,
            width,
            mean_of(scores),
            gain,
            gap,
            facts["active"],
            facts["gamma"],
            facts["weights"],
            facts["seconds"],
            _verdict(gain, gap, best),
        )
        if self.report is not None:
            held_out = _shown(candidate.score)
            self.report(f"latent size {latent_dim}, width {width:g}: held-out {held_out} nats; {candidate.verdict}")
        return candidate, scores

    def _train(self, latent_dim: int, width: float) -> dict[str, Any]:
        began = time.monotonic()
        model: OutlierDetector = clone(self.detector).set_params(
            **self._parameters(latent_dim, width), calibration_fraction=0.02
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of few calibration rows, or a collapse: told in the table
            model.fit(
                self.rows.select(self.for_training),
                negatives=self.negatives,
                columns=self.rows.asked,
                checkpoint=self.checkpoint,
                resume=True,
            )
        if self.checkpoint is not None:
            self.checkpoint.unlink(missing_ok=True)
        some = self.for_training[evenly(len(self.for_training), len(self.for_judging))]
        report = model.fit_report_
        return {
            "held_out": model.score_samples(self.rows.select(self.for_judging)).tolist(),
            "training": model.score_samples(self.rows.select(some)).tolist(),
            "active": report.get("latents", {}).get("active"),
            "gamma": report.get("gamma", {}).get("learned"),
            "weights": sum(p.numel() for p in model.module_.parameters()),
            "seconds": round(time.monotonic() - began, 2),
        }

    # --- what is kept between runs ---------------------------------------------------------------------

    def _fingerprint(self) -> str:
        """Return a digest of what decides the results: neither the device nor what is shown."""
        decisive = {name: v for name, v in self.detector.get_params().items() if name not in ("device", "verbose")}
        digest = hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode())
        for part in (self.for_training, self.for_judging):
            digest.update(np.ascontiguousarray(self.rows.take(part)).data)
        if self.negatives is not None:
            digest.update(np.ascontiguousarray(rows_given(self.negatives, self.rows.spec).take(slice(None))).data)
        return digest.hexdigest()

    def _write_state(self) -> None:
        if self.state is not None:
            content = {
                "fingerprint": self.fingerprint,
                "random_state": self.detector.get_params()["random_state"],
                "candidates": self.known,
            }
            atomic.write(self.state, json.dumps(content) + "\n")


def _verdict(gain: Estimate | None, gap: Estimate, best: Candidate | None) -> str:
    if gain is None or best is None:
        return "best so far"
    if gain.low <= 0:
        return "no better on held-out rows" if gain.high > 0 else "worse on held-out rows"
    widening = gap.value - best.gap.value
    if widening > gain.value:
        return f"the gap opens: training rows gain {gain.value + widening:.3g}, held-out ones {gain.value:.3g}"
    return "best so far"
