"""Which rows are worth training against? Candidates for negatives, rated before a model is trained on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from offmanifold import parameters
from offmanifold.data.inputs import Float64Array, Rows, evenly
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.negatives import named
from offmanifold.diagnosis.patient import Patient
from offmanifold.measures.detection import auroc, auroc_difference, proportion
from offmanifold.measures.estimates import Estimate
from offmanifold.networks import choose
from offmanifold.networks.network import initialise
from offmanifold.training.loop import train
from offmanifold.training.phases import Metrics, Optimizer, ParameterGroup, Phase, Update
from offmanifold.training.threads import limited_to

MOST_ROWS = 2000
# Fewer candidates say little.
FEW = 50
STEPS = 200
BATCH, RATE = 64, 1e-3


@dataclasses.dataclass(frozen=True)
class Candidate:
    """How useful one set of rows may be as negatives.

    Attributes
    ----------
    name : str
    rows : int
    headroom : float
        ``separable`` − ``known``, what the model would gain on rows of this kind; candidates are sorted by it. Rows
        that the model tells apart already (noise, P1 Table III) teach it nothing, nor do rows that nobody tells apart.
    interval : (float, float)
        95 % interval of the headroom for the rows it was measured on. A half that few candidates make may teach less
        or more than another: of fewer than 50 it is a hint at most.
    separable : float
        AUROC, on candidates and normal rows held out, of a small classifier taught for 200 steps with the model's own
        encoder: how easily an encoder tells them apart.
    known : float
        AUROC of the model's score on the same rows, without any negatives.
    distance : float
        Median distance to the nearest normal row, over that of held-out normal rows: 1 is on the data.
    diversity : float
        Mean distance between two candidates, over that between two normal rows: few kinds teach little.
    caught : Estimate
        Share that the model calls outliers already.
    """

    name: str
    rows: int
    headroom: float
    interval: tuple[float, float]
    separable: float
    known: float
    distance: float
    diversity: float
    caught: Estimate

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return dataclasses.asdict(self) | {"caught": self.caught.to_json()}


def rate_negatives(
    detector: OutlierDetector,
    X_normal: Any,
    candidates: Mapping[str, Any],
    *,
    random_state: int = 0,
    report: Callable[[str], None] | None = None,
) -> list[Candidate]:
    """Rate sets of rows by what a detector would learn from them as negatives (P1 §IV-C: they must "wedge in").

    Nothing here needs a real outlier: a classifier with the detector's own encoder is taught on a half of each set, and
    asked about the other, where the detector is asked as well.

    Parameters
    ----------
    detector : fitted OutlierDetector
    X_normal : array-like or frame
        Normal rows, best ones that the detector was not trained on; a half is held out.
    candidates : mapping of array-likes or frames
        By name.
    random_state : int
    report : callable, optional
        Told of progress.

    Returns
    -------
    list of Candidate
        The most useful first.

    Raises
    ------
    ValueError
        For candidates of another shape, or too few rows: 12 normal ones, 4 of each set.
    """
    check_is_fitted(detector, "module_")
    random_state = parameters.integer("random_state", random_state, minimum=0, maximum=2**32 - 1)
    if not isinstance(candidates, Mapping):
        raise TypeError(f"candidates must map names to sets of rows; got {type(candidates).__name__}.")
    if not candidates:
        raise ValueError("candidates is empty: give at least one set of rows by name.")
    patient = Patient(detector, X_normal, most=MOST_ROWS, seed=random_state)
    if patient.count < 12:
        raise ValueError(f"X_normal has {patient.count} rows; at least 12 are needed, a part of them held out.")
    held_out = patient.normal
    own_distance = float(np.median(patient.own_nearest[0]))
    own_spread = _spread(held_out)
    found = []
    for name, values in candidates.items():
        rows = named(f"candidates[{name!r}]", partial(Rows, values, detector.spec_, "the detector"))
        given = rows.take(evenly(len(rows), MOST_ROWS)).astype(np.float64)
        given = given[~np.isnan(given.reshape(len(given), -1)).all(1)]  # of a row without any cell nothing is learned
        if len(given) < 4:
            raise ValueError(f"candidates[{name!r}] has {len(given)} rows that hold anything; at least 4 are needed.")
        given = given[np.random.default_rng(random_state).permutation(len(given))]
        block = np.nan_to_num(patient.scaler.transform(given))
        half = len(block) // 2
        probe = _taught(detector, patient.reference, block[:half], random_state)
        normal = probe(held_out)
        scores = patient.score(block)
        taught, own = (normal, probe(block[half:])), (patient.scores, scores[half:])
        gain = auroc_difference(taught, own)
        found.append(
            Candidate(
                name=name,
                rows=len(rows),
                headroom=gain.value,
                interval=(gain.low, gain.high),
                separable=auroc(*taught).value,
                known=auroc(*own).value,
                distance=float(np.median(patient.nearest(block)[0])) / max(own_distance, 1e-12),
                diversity=_spread(block) / max(own_spread, 1e-12),
                caught=proportion(int((scores < detector.offset_).sum()), len(scores)),
            )
        )
        if report is not None:
            report(f"{name}: rated")
    return sorted(found, key=lambda candidate: -candidate.headroom)


def _spread(rows: Any) -> float:
    """Return the mean distance between a row and the next, in the random order that rows are in."""
    flat = np.asarray(rows, dtype=np.float64).reshape(len(rows), -1)
    return float(np.linalg.norm(flat - np.roll(flat, 1, 0), axis=1).mean())


def _taught(
    detector: OutlierDetector, normal: npt.NDArray[Any], negatives: npt.NDArray[Any], seed: int
) -> Callable[[Any], Float64Array]:
    """Train a classifier of the detector's encoder; return what gives its logits (high = normal)."""
    settings = detector.settings_
    # A denoiser's network has no encoder.
    known = settings["network"] in choose.NETWORKS
    with torch.random.fork_rng(devices=[]):
        network, _ = choose.build(
            settings["network"] if known else choose.for_images(normal.shape[1:]),
            normal.shape[1:],
            into_latent=1,
            latent_dim=1,
            hidden=settings["hidden"],
            capacity=settings["capacity"],
        )
    initialise(network, torch.Generator().manual_seed(seed))
    rows, pool = (torch.from_numpy(np.asarray(part, dtype=np.float32)) for part in (normal, negatives))
    kept = len(rows) // 10 + 1

    def loss(batch: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        odd = pool[torch.randint(len(pool), (len(batch),), generator=generator)]
        logits: Tensor = network(torch.cat([batch, odd])).flatten()
        return F.softplus(-logits[: len(batch)]) + F.softplus(logits[len(batch) :]), {}

    update = Update((ParameterGroup.of("probe", network),), loss, Optimizer(RATE))
    phase = Phase("probe", (update,), STEPS, BATCH)
    with limited_to(detector._threads(network, {**settings, "batch_size": BATCH})):
        train(network, [phase], rows[kept:], rows[:kept], seed=seed)
    return _logits(network)


def _logits(network: nn.Module) -> Callable[[Any], Float64Array]:
    @torch.no_grad()
    def logits(rows: Any) -> Float64Array:
        parts = torch.split(torch.from_numpy(np.asarray(rows, dtype=np.float32)), 256)
        return torch.cat([network(part).flatten() for part in parts]).double().numpy()

    return logits
