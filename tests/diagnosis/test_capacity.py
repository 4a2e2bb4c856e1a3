"""How large should the model be: the search and what a fitted model answers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offmanifold import AE, VAE, SemiSupervisedVAE
from offmanifold.detectors.variational import COLLAPSE
from offmanifold.diagnosis import capacity
from offmanifold.diagnosis.answers import answers
from offmanifold.diagnosis.capacity import suggest_capacity
from offmanifold.measures.estimates import Estimate


@pytest.fixture(scope="module")
def curved() -> np.ndarray:
    """Rows near a curved surface of three dimensions in ten."""
    rng = np.random.default_rng(0)
    return np.tanh(rng.normal(size=(1200, 3)) @ rng.normal(size=(3, 10))) + 0.05 * rng.normal(size=(1200, 10))


def small(**more: Any) -> VAE:
    return VAE(**({"gamma": "learned", "steps": 300, "random_state": 3, "verbose": False} | more))


def test_it_finds_enough_latents_and_no_candidate_sees_the_calibration_rows(
    curved: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[np.ndarray] = []
    fit = VAE.fit
    monkeypatch.setattr(VAE, "fit", lambda self, X, *a, **k: seen.append(X) or fit(self, X, *a, **k))
    told: list[str] = []
    found = suggest_capacity(small(), curved, widths=(0.25, 0.5), report=told.append)
    assert found.parameters["latent_dim"] >= 3
    assert found.parameters["hidden"] in ((32, 32), (64, 64))
    assert found.parameters["random_state"] == 3
    # One latent is missing three of the surface's dimensions: growing had to help.
    assert [c.latent_dim for c in found.candidates[:2]] == [2, 4]
    assert found.candidates[1].better and found.candidates[1].gain.low > 0
    assert len(told) == len(found.candidates) == len(seen)
    calibration = curved[small().split(len(curved))[0]]
    for rows in seen:
        assert not (calibration[:, None] == rows[None]).all(-1).any()
    columns, rows = found.table()
    assert all(len(row) == len(columns) for row in rows)
    final = small().set_params(**found.parameters).fit(curved)
    assert final.settings_["latent_dim"] == found.parameters["latent_dim"]


def test_an_interrupted_search_goes_on(curved: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = tmp_path / "search.json"
    straight = suggest_capacity(small(), curved, widths=(0.25,))
    fits = 0
    fit = VAE.fit

    def stopping(self: VAE, *args: Any, **more: Any) -> VAE:
        nonlocal fits
        fits += 1
        if fits == 2:
            raise KeyboardInterrupt
        return fit(self, *args, **more)

    monkeypatch.setattr(VAE, "fit", stopping)
    with pytest.raises(KeyboardInterrupt):
        suggest_capacity(small(), curved, widths=(0.25,), state=state)
    assert len(json.loads(state.read_text())["candidates"]) == 1
    again = suggest_capacity(small(), curved, widths=(0.25,), state=state)
    assert fits == 1 + len(straight.candidates)
    assert again.parameters == straight.parameters
    assert [c.score for c in again.candidates] == [c.score for c in straight.candidates]
    with pytest.raises(ValueError, match="belongs to a search with other data or settings"):
        suggest_capacity(small(beta=2.0), curved, state=state)
    state.write_text("{}")
    with pytest.raises(ValueError, match="is not the state of a search"):
        suggest_capacity(small(), curved, state=state)


def test_a_search_without_a_seed_goes_on_with_its_own(
    curved: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = tmp_path / "search.json"
    monkeypatch.setattr(capacity._Search, "_try", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        suggest_capacity(small(random_state=None), curved, widths=(0.25,), latent_dims=(2,), state=state)
    monkeypatch.undo()
    kept = json.loads(state.read_text())["random_state"]
    again = suggest_capacity(
        small(random_state=None, verbose="auto"), curved, widths=(0.25,), latent_dims=(2,), state=state
    )
    assert again.parameters["random_state"] == kept


def test_images_are_widened_by_their_channels() -> None:
    images = np.random.default_rng(0).random((60, 16, 16)).astype(np.float32)
    found = suggest_capacity(small(steps=2, batch_size=16), images, widths=(0.1, 0.2), latent_dims=(2, 3))
    assert set(found.parameters) == {"latent_dim", "capacity", "random_state"}


def test_what_cannot_be_searched_is_said(curved: np.ndarray) -> None:
    with pytest.raises(TypeError, match="AE has none .an autoencoder's error only falls"):
        suggest_capacity(AE(), curved)
    with pytest.raises(ValueError, match="a model of another task; got detector=SemiSupervisedVAE. Compare sizes"):
        suggest_capacity(SemiSupervisedVAE(), curved)
    with pytest.raises(ValueError, match="widths must increase"):
        suggest_capacity(small(), curved, widths=(1, 1))
    with pytest.raises(ValueError, match="latent_dims.0. must be"):
        suggest_capacity(small(), curved, latent_dims=(0, 1))
    with pytest.raises(ValueError, match="at least 20 rows to compare sizes on; got 8"):
        suggest_capacity(small(), curved[:8])


def test_verdicts() -> None:
    def about(value: float, half: float = 0.1) -> Estimate:
        return Estimate(value, value - half, value + half)

    first = capacity.Candidate(2, 1.0, about(0), None, about(0.2), 2, 0.1, 10, 1.0, "best so far")
    verdict = capacity._verdict
    assert verdict(None, about(0), None) == "best so far"
    assert verdict(about(1.0), about(0.5), first) == "best so far"
    assert verdict(about(0.05), about(0.2), first) == "no better on held-out rows"
    assert verdict(about(-1.0), about(0.2), first) == "worse on held-out rows"
    assert verdict(about(1.0), about(2.0), first) == "the gap opens: training rows gain 2.8, held-out ones 1"


# --- three questions -----------------------------------------------------------------------------------


def test_a_model_answers_three_questions(curved: np.ndarray) -> None:
    told = answers(small(latent_dim=8).fit(curved))
    assert list(told) == ["latent size", "capacity", "gradients"]
    assert told["latent size"].startswith("3 of 8 latents are active (more than 0.01 nats a row): large enough")
    assert "no sign of a network that is too large" in told["capacity"]
    assert "as it must be where γ falls" in told["gradients"]
    assert answers(small(latent_dim=2).fit(curved))["latent size"].endswith(
        "perhaps too few. Try latent_dim=4; `offmanifold fit --capacity auto` (suggest_capacity in Python) compares "
        "sizes on held-out rows."
    )
    assert "nothing unusual" in answers(small(gamma=1.0).fit(curved))["gradients"]
    (told_of_ae,) = answers(AE(steps=5, verbose=False).fit(curved)).values()
    assert told_of_ae.endswith("no sign of a network that is too large.")


def test_a_collapsed_posterior_is_named(curved: np.ndarray) -> None:
    with pytest.warns(UserWarning, match="the posterior has collapsed"):
        detector = small(gamma=50.0).fit(curved)
    assert answers(detector)["latent size"] == COLLAPSE


def test_memorised_rows_and_runaway_gradients_are_named() -> None:
    rng = np.random.default_rng(0)
    heart = AE(noise=0.0, latent_dim=64, steps=1000, random_state=0, verbose=False).fit(rng.normal(size=(300, 100)))
    assert "knows its training rows better than others" in answers(heart)["capacity"]
    detector = small().fit(rng.normal(size=(100, 3)) * [1, 1, 0])
    detector.history_ = [{"gradient_norm/latent": 1.0, "gamma": 0.5}, {"gradient_norm/latent": 50.0, "gamma": 0.4}]
    detector.fit_report_["gamma"]["at_floor"] = False
    assert "which γ does not explain" in answers(detector)["gradients"]


# --- data on the edge ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*cannot promise:UserWarning", "ignore:.*has collapsed:UserWarning")
@pytest.mark.parametrize("gamma", ["learned", "closed-form", "continuation", "per-dimension"])
def test_constant_duplicated_and_single_rows_leave_everything_finite(gamma: str) -> None:
    rng = np.random.default_rng(0)
    column = rng.normal(size=(100, 1))
    for X in (np.full((100, 3), 7.0), np.repeat(rng.normal(size=(1, 3)), 100, 0), np.hstack([column] * 3)):
        for more in ({}, {"latent_dim": 1}, {"latent_dim": 20}, {"beta": 0.0}):
            detector = small(gamma=gamma, hidden=(16,), steps=150, **more).fit(X)
            assert np.isfinite(detector.score_samples(X)).all()
            assert all(np.isfinite(record["loss"]) for record in detector.history_)
            assert detector.gamma_.min() >= 1e-6
            assert set(answers(detector)) == {"latent size", "capacity", "gradients"}


@pytest.mark.filterwarnings("ignore:.*has collapsed:UserWarning")
def test_the_floor_is_reported() -> None:
    detector = VAE(gamma="closed-form", random_state=0, verbose=False).fit(np.full((200, 3), 7.0))
    assert detector.fit_report_["gamma"]["at_floor"]
    assert "its floor" in answers(detector)["gradients"]


def test_continuation_begins_at_the_datas_variance_and_falls_by_at_most_a_hundredth(curved: np.ndarray) -> None:
    detector = small(gamma="continuation", scale=None).fit(curved)
    gammas = [record["gamma"] for record in detector.history_]
    steps = [record["step"] for record in detector.history_]
    assert detector.settings_["gamma_start"] == pytest.approx(curved.var(), rel=0.05)
    for (early, late), (before, after) in zip(itertools.pairwise(gammas), itertools.pairwise(steps), strict=True):
        assert late >= early * 0.99 ** (after - before) * 0.999
    assert gammas[-1] < 0.3 * gammas[0]


def test_a_network_that_cannot_fit_in_memory_is_refused_before_training(curved: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"of 8e\+10 weights takes 1,490 GiB to train; this device has"):
        VAE(hidden=(200_000, 200_000)).fit(curved)
