"""What goes wrong with detectors of every kind is caught, and named; what looks odd and is not wrong, is trusted."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

from offmanifold import AE, NAE, VAE, NegativeVAE, TrainingDiverged, diagnose

COMMON = {"random_state": 0, "verbose": False}


def rows_of(n: int, seed: int) -> np.ndarray:
    """Rows on a curved surface of two dimensions in six."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, 2))
    basis = np.random.default_rng(0).normal(size=(2, 4))
    return np.concatenate([z, np.tanh(z @ basis)], 1) + 0.05 * rng.normal(size=(n, 6))


LEARNED, NEW = rows_of(800, 1), rows_of(400, 2)
SAME, REPEATED = np.ones((200, 4)), np.repeat(LEARNED[:1], 200, 0)


def twice(rows: np.ndarray) -> np.ndarray:
    """Every column twice."""
    return np.concatenate([rows, rows], 1)


def examined(detector: Any, learned: np.ndarray, new: np.ndarray) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what is wrong is said at the fit, too
        detector.fit(learned)
    return diagnose(detector, new, budget="1h", checks=[
        "training", "latents", "scaling", "calibration", "drift", "red team", "agreement", "identity",
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("detector", "learned", "new", "named"),
    [
        (VAE(beta=0, **COMMON), LEARNED, NEW, "red team"),
        (VAE(beta=100, **COMMON), LEARNED, NEW, "latents"),
        (VAE(**COMMON), SAME, SAME, "latents"),
        (VAE(**COMMON), REPEATED, REPEATED, "latents"),
        (VAE(**COMMON), REPEATED, NEW, "calibration"),
        (VAE(**COMMON), LEARNED[:10], NEW, "red team"),
    ],
    ids=[
        "no KL", "collapsed", "constant", "one row", "one row and new ones",
        "ten rows",
    ],
)  # fmt: skip
def test_what_is_broken_is_distrusted(detector: Any, learned: np.ndarray, new: np.ndarray, named: str) -> None:
    diagnosis = examined(detector, learned, new)
    assert diagnosis.verdict == "distrust"
    assert named in diagnosis.weighing_most and diagnosis[named].verdict in ("warn", "fail")
    assert all(finding.advice for finding in diagnosis.findings if finding.verdict in ("warn", "fail"))


def test_an_adversary_that_won_is_distrusted() -> None:
    """Which seeds training gives up on by itself depends on the processor's last bits; the others the doctor sees."""
    examinations = []
    for seed in range(4):
        detector = NegativeVAE(negatives="adversarial", learning_rate=0.5, random_state=seed, verbose=False)
        try:
            examinations.append(examined(detector, LEARNED, NEW))
        except TrainingDiverged as error:
            assert "adversarial training collapsed" in str(error)  # noqa: PT017 -- one of two good ends
    assert examinations
    for diagnosis in examinations:
        assert diagnosis.verdict == "distrust"
        assert "red team" in diagnosis.weighing_most and diagnosis["red team"].verdict in ("warn", "fail")
        assert all(finding.advice for finding in diagnosis.findings if finding.verdict in ("warn", "fail"))


def test_what_is_doubtful_is_not_trusted() -> None:
    """One latent for a surface; chains that diverged, from which the last good weights were kept."""
    diagnosis = examined(VAE(latent_dim=1, **COMMON), LEARNED, NEW)
    assert diagnosis.verdict != "trust" and diagnosis["latents"].verdict == "warn"
    assert "latent_dim=2" in diagnosis["latents"].advice
    # Without a KL and with more latents than columns it sees synthetic outliers better than neighbours do, and yet
    # disagrees with them about every normal row.
    diagnosis = examined(VAE(beta=0, latent_dim=20, score_by="reconstruction", **COMMON), LEARNED, NEW)
    assert diagnosis.verdict != "trust" and "agreement" in diagnosis.weighing_most
    assert diagnosis["agreement"].verdict == "warn" and diagnosis["red team"].verdict == "fine"
    diagnosis = examined(NAE(negatives="cd", learning_rate=0.1, **COMMON), LEARNED, NEW)
    assert diagnosis.verdict != "trust" and "training" in diagnosis.weighing_most
    assert "rolled back" in diagnosis["training"].told and "learning_rate" in diagnosis["training"].advice


@pytest.mark.parametrize(
    ("detector", "change"),
    [
        (VAE(**COMMON), None),
        (AE(**COMMON), None),
        (VAE(latent_dim=20, **COMMON), None),
        (VAE(**COMMON), twice),
    ],
    ids=["VAE", "AE", "more latents than columns", "columns there twice"],
)
def test_what_is_not_broken_is_trusted(detector: Any, change: Any) -> None:
    learned, new = (LEARNED, NEW) if change is None else (change(LEARNED), change(NEW))
    assert examined(detector, learned, new).verdict == "trust"
