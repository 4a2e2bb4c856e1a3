"""Missing cells: in no loss and no score, and no reason to be called abnormal."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import made, quick

from offmanifold import (
    AE,
    IGEBM,
    NAE,
    VAE,
    WAE,
    MultiscaleDenoiser,
    NegativeVAE,
    OutlierDetector,
    SemiSupervisedVAE,
    auroc,
    load,
)
from offmanifold.detectors.levelling import Levelling
from offmanifold.measures import optimal_gamma

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot promise:UserWarning", "ignore:.*has collapsed:UserWarning")


def hidden(rows: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    return np.where(np.random.default_rng(seed).random(rows.shape) < share, np.nan, rows)


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    """Rows near a plane in eight dimensions, whose columns matter in different measure."""
    rng = np.random.default_rng(5)
    basis = rng.normal(size=(2, 8))
    return rng.normal(size=(6000, 2)) @ basis + np.geomspace(0.05, 1, 8) * rng.normal(size=(6000, 8))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3])
def test_p_values_stay_uniform_when_cells_vanish(
    detector_class: type[OutlierDetector], many: np.ndarray, share: float
) -> None:
    detector = detector_class(**quick(detector_class)).fit(many[:3000])
    p = detector.p_values(hidden(many[3000:], share))
    for rate in (0.05, 0.1, 0.25, 0.5, 0.75, 0.9):
        # 600 calibration rows and 300 rows held out have errors of their own.
        assert abs((p <= rate).mean() - rate) < 0.01 + 4 * np.sqrt(rate * (1 - rate) / 400), rate


def test_levels_are_learned_among_the_rows_of_others(many: np.ndarray) -> None:
    """A stored row that may compare itself with itself looks more normal than any new one."""
    detector = MultiscaleDenoiser(**quick(MultiscaleDenoiser)).fit(many[:3000])
    _, stopping, training = detector.split(3000)
    held_out = detector._prepare(many[stopping])
    with torch.no_grad():
        among_all = detector._raw_energy(held_out)
        with detector.module_.stored.first(len(training)):
            among_others = detector._raw_energy(held_out)
    assert detector._levelling is not None
    assert float(detector._levelling.centre) == pytest.approx(float(among_others.quantile(0.5)), abs=1e-5)
    assert float(among_all.quantile(0.5)) < float(among_others.quantile(0.5)) - 0.1


def test_no_pattern_of_gaps_is_suspicious_by_itself(many: np.ndarray) -> None:
    """Not even that in which the column that varies least, or most, is the one that is missing."""
    detector = AE(random_state=0, verbose=False, steps=300).fit(many[:3000])
    for column in range(8):
        rows = many[3000:].copy()
        rows[:, column] = np.nan
        p = detector.p_values(rows)
        assert abs((p <= 0.1).mean() - 0.1) < 0.07 and abs((p <= 0.5).mean() - 0.5) < 0.15


def test_complete_rows_know_nothing_of_it(detector_class: type[OutlierDetector], plane: Any) -> None:
    """Whatever is missing beside them, to the last bit."""
    detector = detector_class(**quick(detector_class)).fit(plane[0])
    rows = np.concatenate(plane)
    gappy = np.where(np.arange(len(rows))[:, None] % 2, hidden(rows, 0.5), rows)
    complete = ~np.isnan(gappy).any(1)
    found = detector.score_samples(gappy)
    np.testing.assert_array_equal(found[complete], detector.score_samples(rows)[complete])
    np.testing.assert_array_equal(found[~complete], detector.score_samples(gappy[~complete]))
    assert np.isfinite(found).all()
    for name, term in detector.score_terms(gappy).items():
        np.testing.assert_array_equal(term[complete], detector.score_terms(rows)[name][complete])
    np.testing.assert_array_equal(sum(detector.score_terms(gappy).values()), found)


@pytest.mark.parametrize("cls", [AE, VAE, MultiscaleDenoiser])
def test_trained_on_rows_with_gaps(cls: type[OutlierDetector], plane: Any, tmp_path: Path) -> None:
    normal, odd = plane
    rows = hidden(normal, 0.2)
    detector = cls(**quick(cls) | {"steps": 400}).fit(rows)
    assert auroc(detector.score_samples(normal), detector.score_samples(odd)).value > 0.9
    new = np.concatenate([hidden(odd, 0.2), hidden(normal, 0.3), np.full((1, 5), np.nan)])
    scores = detector.score_samples(new)
    assert auroc(scores[100:500], scores[:100]).value > 0.85
    assert 0.2 < detector.p_values(new)[-1] < 0.8  # of which nothing is known
    detector.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(load(tmp_path / "m.safetensors").score_samples(new), scores)
    if isinstance(detector, AE | VAE):
        assert np.isfinite(detector.reconstruct(new)).all() and np.isfinite(detector.transform(new)).all()


@pytest.mark.parametrize("cls", [AE, NAE, VAE, WAE, NegativeVAE, SemiSupervisedVAE])
def test_codes_are_of_completed_rows(cls: Any, plane: Any) -> None:
    detector = cls(**quick(cls)).fit(plane[0])
    rows = plane[1][:40]
    gappy = hidden(rows, 0.3)
    model = detector.module_
    complete = detector.transform(rows)
    with torch.no_grad():
        prepared = torch.from_numpy(detector.prepared(gappy)).float()
        whole = model.completed(prepared)
        expected, unfilled = model.encode(whole), model.encode(prepared)
    np.testing.assert_allclose(detector.transform(gappy), expected.numpy(), rtol=1e-4, atol=1e-5)
    assert not np.allclose(expected.numpy(), unfilled.numpy(), rtol=1e-2, atol=1e-3)
    beside = np.concatenate([rows[:1], gappy[1:]])
    np.testing.assert_array_equal(detector.transform(beside)[0], complete[0])  # to the last bit
    if hasattr(detector, "posterior"):
        np.testing.assert_array_equal(detector.transform(gappy), detector.posterior(gappy)[0])


@pytest.mark.parametrize("labels", ["discrete", "continuous"])
def test_labels_and_counterfactuals_are_of_completed_rows(labels: str, plane: Any) -> None:
    rows, gappy = plane[0][:40], hidden(plane[0][:40], 0.3)
    y = (plane[0][:, 0] > 0).astype(float) if labels == "discrete" else plane[0][:, 0]
    detector = SemiSupervisedVAE(**quick(SemiSupervisedVAE) | {"steps": 50, "labels": labels}).fit(plane[0], y)
    model = detector.module_
    with torch.no_grad():
        whole = model.completed(torch.from_numpy(detector.prepared(gappy)).float())
    completed = detector._inverse(whole)
    seen = ~np.isnan(gappy)
    np.testing.assert_allclose(completed[seen], rows[seen], rtol=1e-4, atol=1e-5)
    told = detector.predict_proba if labels == "discrete" else detector.predict_label
    np.testing.assert_allclose(told(gappy), told(completed), rtol=1e-3, atol=1e-4)
    wanted = detector.classes_[0] if labels == "discrete" else 0.5
    np.testing.assert_allclose(
        detector.counterfactual(gappy, wanted), detector.counterfactual(completed, wanted), rtol=1e-3, atol=1e-4
    )


def test_the_best_variance_is_of_the_cells_seen(plane: Any) -> None:
    """A row of which one cell is seen weighs a fifth of a whole one, and one of which none is, nothing."""
    detector = made(VAE, gamma="learned").fit(plane[0])
    rows = plane[0][:40].copy()
    rows[:10, 1:], rows[10:20] = np.nan, np.nan
    apart = detector.expected_errors(rows[:10]).sum() + 5 * detector.expected_errors(rows[20:]).sum()
    assert optimal_gamma(detector, rows).value == pytest.approx(apart / (10 + 5 * 20), rel=1e-5)
    assert optimal_gamma(detector, rows[20:]).value == pytest.approx(detector.expected_errors(rows[20:]).mean())


@pytest.mark.parametrize("own", [{"gamma": "closed-form"}, {"gamma": "per-dimension"}, {"score_by": "iwae"}])
def test_every_variance_of_a_vae_learns_from_gaps(own: dict[str, Any], plane: Any) -> None:
    detector = VAE(**quick(VAE), **own).fit(hidden(plane[0], 0.2))
    assert np.isfinite(detector.score_samples(hidden(plane[1], 0.2))).all()
    assert all(np.isfinite(record["loss"]) for record in detector.history_)


@pytest.mark.parametrize("cls", [AE, VAE])
def test_a_missing_cell_is_in_no_loss(cls: type[OutlierDetector], plane: Any) -> None:
    """What the decoder says about it has no gradient."""
    detector = cls(**quick(cls)).fit(plane[0])
    rows = torch.from_numpy(plane[0][:8]).float()
    rows[:, 2] = torch.nan
    model = detector.module_.requires_grad_()
    values, _ = detector._phases(model, detector.settings_)[0].updates[0].loss(rows, torch.Generator().manual_seed(0))
    last = list(model.decoder.parameters())[-1]
    (slope,) = torch.autograd.grad(values.sum(), last)
    assert slope.shape == (5,) and slope[2] == 0 and (slope[[0, 1, 3, 4]] != 0).all()


@pytest.mark.parametrize("cls", [NAE, IGEBM])
def test_chains_learn_from_complete_rows(cls: type[OutlierDetector], plane: Any) -> None:
    rows = plane[0].copy()
    rows[::4, 1] = np.nan
    with pytest.warns(UserWarning, match="learns from complete rows alone: .* rows to learn from, .* are left out"):
        detector = cls(**quick(cls)).fit(rows)
    assert detector.rows_["training"] < 0.9 * len(detector.split(len(rows))[2])  # a quarter was left out
    assert np.isfinite(detector.score_samples(rows)).all()
    with pytest.raises(ValueError, match="in every one of the rows to learn from a cell is missing"):
        cls(**quick(cls)).fit(np.c_[rows, np.full(len(rows), np.nan)])


def test_explanations_leave_missing_cells_out(detector_class: type[OutlierDetector], plane: Any) -> None:
    detector = detector_class(**quick(detector_class)).fit(plane[0])
    rows = plane[1][:20].copy()
    rows[:, 3] = np.nan
    told = detector.explain(rows)
    assert (told.contributions[:, 3] == 0).all() and np.isnan(told.nearest[:, 3]).all()
    sums = told.contributions.sum(1) + told.latent.sum(1) + told.base + told.residual
    np.testing.assert_allclose(sums, told.score, rtol=1e-9)
    np.testing.assert_array_equal(told.score, detector.score_samples(rows))


def test_one_column_and_few_rows() -> None:
    rows = np.random.default_rng(0).normal(size=(30, 1))
    detector = AE(**quick(AE)).fit(rows)
    assert np.isfinite(detector.score_samples([[np.nan], [0.0]])).all()
    few = AE(**quick(AE)).fit(hidden(np.random.default_rng(0).normal(size=(10, 3)), 0.3))
    assert np.isfinite(few.score_samples([[np.nan, 1.0, 2.0]])).all()


def test_a_single_calibration_row_with_a_gap_is_no_sign_of_anything() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 3))
    rows[:, 0] = np.nan
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made(AE).fit(rows)
    assert not any("have the same score" in str(warning.message) for warning in caught)


def test_levelling_takes_quantiles_to_quantiles() -> None:
    """A sum of squares: fewer of them have another mean, spread and shape."""
    rng = torch.Generator().manual_seed(1)

    def energy(rows: torch.Tensor) -> torch.Tensor:
        return (rows.square() * torch.tensor([1.0, 1, 4, 1, 1, 1])).nansum(1)

    held_out = torch.randn(2000, 6, generator=rng)
    levels = Levelling.fit(energy, held_out, torch.arange(6))
    new = torch.randn(20_000, 6, generator=rng)
    standard = energy(new)
    for absent in ([0], [2], [0, 2, 5]):
        rows = new.clone()
        rows[:, absent] = torch.nan
        levelled = levels(energy(rows), rows)
        for share, most in ((0.1, 0.06), (0.5, 0.08), (0.9, 0.03), (0.95, 0.02)):
            assert abs(float((levelled <= standard.quantile(share)).float().mean()) - share) < most
        assert torch.equal(levels(standard, new), standard)
        nothing = torch.full((1, 6), torch.nan)
        assert levels(torch.tensor([1e4]), nothing) == levels.centre
        order = energy(rows).argsort()
        assert (levelled[order].diff() >= 0).all()  # of one pattern the order stays
        # Far beyond what was seen an energy is what it was but for a fixed difference.
        far = 1e3 * (1 + energy(rows))
        torch.testing.assert_close(levels(2 * far, rows) - levels(far, rows), far, rtol=1e-4, atol=0)
        assert bool(((levels(far, rows) - far).abs() < 50).all())
