"""Contributions sum to the score, name what is odd, and the nearest normal row is one."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import quick

from offmanifold import AE, IGEBM, NAE, VAE, MultiscaleDenoiser, OutlierDetector
from offmanifold.detectors.explanations import Explanation, cell_and_normal


def total(explanation: Any) -> np.ndarray:
    n = len(explanation.score)
    parts = explanation.contributions.reshape(n, -1).sum(1) + explanation.latent.sum(1)
    return parts + explanation.base + explanation.residual


def test_contributions_sum_to_the_score(detector_class: type[OutlierDetector], plane: Any, digits: Any) -> None:
    for rows, odd in ((plane[0], plane[1][:20]), (digits[0][:300], 1 - digits[0][:8])):
        detector = detector_class(**quick(detector_class)).fit(rows)
        explanation = detector.explain(odd)
        np.testing.assert_array_equal(explanation.score, detector.score_samples(odd))
        np.testing.assert_allclose(total(explanation), explanation.score, rtol=1e-9)
        assert explanation.contributions.shape == explanation.nearest.shape == odd.shape
        if explanation.exact:
            assert (explanation.base == 0).all()
            assert np.abs(explanation.residual).max() <= 1e-5 * np.abs(explanation.score).max()
        else:
            change = explanation.score - explanation.base
            assert np.median(np.abs(explanation.residual)) <= 0.01 * np.median(np.abs(change))
        # To the bit: wherever a row stands, and whatever is explained beside it.
        pair = detector.explain(odd[[1, 0]])
        for name in ("score", "contributions", "latent", "base", "residual", "nearest"):
            np.testing.assert_array_equal(getattr(pair, name)[::-1], getattr(explanation, name)[:2])


def test_complete_rows_are_explained_the_same_beside_rows_with_gaps(
    detector_class: type[OutlierDetector], plane: Any
) -> None:
    detector = detector_class(**quick(detector_class)).fit(plane[0])
    rows = np.concatenate([plane[1][:3], plane[0][:3]])
    gappy = rows.copy()
    gappy[::2, 1] = np.nan
    alone, among = detector.explain(rows[1::2]), detector.explain(gappy)
    for name in ("score", "contributions", "latent", "base", "residual", "nearest"):
        np.testing.assert_array_equal(getattr(among, name)[1::2], getattr(alone, name))


@pytest.mark.parametrize("own", [{}, {"score_by": "kl"}, {"score_by": "iwae"}, {"score_by": "reconstruction"}])
def test_every_score_of_a_vae(own: dict[str, Any], plane: Any) -> None:
    detector = VAE(**quick(VAE), **own).fit(plane[0])
    explanation = detector.explain(plane[1][:10])
    assert explanation.exact == (own.get("score_by") != "iwae")
    np.testing.assert_allclose(total(explanation), explanation.score, rtol=1e-9)
    terms = detector.score_terms(plane[1][:10])
    if "kl" in terms:
        np.testing.assert_allclose(explanation.latent.sum(1), terms["kl"], rtol=1e-5)
    assert explanation.latent.shape[1] == (detector.settings_["latent_dim"] if "kl" in terms else 0)


def test_explanations_use_the_scores_arithmetic(digits: Any) -> None:
    detector = AE(**quick(AE), precision="bfloat16").fit(digits[0][:300])
    explanation = detector.explain(digits[0][:20])
    assert np.abs(explanation.residual).max() <= 1e-3 * np.abs(explanation.score).max()


def test_a_similarity_is_explained_along_a_path(digits: Any) -> None:
    detector = AE(**quick(AE), distance="ssim").fit(digits[0][:300])
    explanation = detector.explain(1 - digits[0][:10])
    assert not explanation.exact
    np.testing.assert_allclose(total(explanation), explanation.score, rtol=1e-9)


@pytest.mark.parametrize("cls", [AE, VAE, NAE, IGEBM])
def test_the_odd_column_is_named(cls: type[OutlierDetector], plane: Any) -> None:
    frame = pl.DataFrame(plane[0], schema=list("abcde"), orient="row")
    detector = cls(**quick(cls) | {"steps": 200}).fit(frame)
    odd = frame[:40].with_columns(c=pl.col("c") + 8 * plane[0][:, 2].std())
    explanation = detector.explain(odd)
    worst = [explanation.top(row, 1)[0][0] for row in range(40)]
    assert worst.count("c") >= 24
    name, contribution, value, nearest, usual = explanation.top(0, 2)[0]
    assert value == odd[name][0] and (np.isnan(nearest) or nearest == explanation.nearest[0, "abcde".index(name)])
    assert contribution == explanation.contributions[0, "abcde".index(name)] == explanation.contributions[0].min()
    low, high = usual
    column = detector.calibration_rows_[:, "abcde".index(name)]
    assert 0.03 <= (column < low).mean() <= 0.05 and 0.03 <= (column > high).mean() <= 0.05


def test_the_nearest_normal_row_is_normal_and_near(plane: Any) -> None:
    detector = AE(random_state=0, verbose=False, steps=400).fit(plane[0])
    odd = plane[0][:30].copy()
    odd[:, 1] += 3 * plane[0][:, 1].std()
    explanation = detector.explain(odd)
    found = np.isfinite(explanation.nearest).all(1)
    assert found.mean() > 0.8
    assert (detector.p_values(explanation.nearest[found]) > 0.15).all()
    moved = np.abs(explanation.nearest - odd)[found] / plane[0].std(0)
    assert np.median(moved.max(1)) < 6
    # A row that is ordinary already stays as it is.
    ordinary = plane[0][detector.p_values(plane[0]) > 0.3][:10]
    np.testing.assert_array_equal(detector.explain(ordinary).nearest, ordinary)


def test_a_row_beyond_all_search_is_explained_from_the_means(plane: Any) -> None:
    detector = IGEBM(**quick(IGEBM)).fit(plane[0])
    far = plane[0][:5] * 1e6
    explanation = detector.explain(far)
    np.testing.assert_allclose(total(explanation), explanation.score, rtol=1e-9)
    lost = ~np.isfinite(explanation.nearest).all(1)
    assert lost.any()
    np.testing.assert_array_equal(lost, ~explanation.ordinary)
    assert list(explanation.beside(int(lost.argmax()))) == ["where the path begins"]
    usual = detector.explain(plane[0][detector.p_values(plane[0]) > 0.5][:1])
    assert list(usual.beside(0)) == ["nearest normal row"]
    changes = np.abs(explanation.contributions).reshape(5, -1).sum(1)
    assert (changes[lost] > 0.5 * np.abs(explanation.score - explanation.base)[lost]).all()
    means = detector.score_samples(detector._standardiser.mean[None])  # type: ignore[union-attr]
    np.testing.assert_allclose(explanation.base[lost], means[0], rtol=1e-4)


@pytest.mark.parametrize("value", [1e2, 1e6, 1e12, -1e9])
def test_however_extreme_a_cell_it_is_named(value: float, plane: Any) -> None:
    """An energy that grows as a logarithm changes near the beginning of a long path."""
    detector = MultiscaleDenoiser(**quick(MultiscaleDenoiser) | {"steps": 100}).fit(plane[0])
    rows = plane[0][:3].copy()
    rows[:, 1] = value
    told = detector.explain(rows)
    assert (np.abs(told.residual) < 0.02 * np.abs(told.score)).all()
    for i in range(3):
        reasons = told.top(i, 5)
        assert reasons[0].column == "column 1" and all(reason.contribution < 0 for reason in reasons)
        assert reasons[0].contribution < 0.5 * told.score[i]


def test_cells_are_shown_with_digits_that_tell_them_apart() -> None:
    day = datetime.datetime(2024, 1, 5, 4)
    assert cell_and_normal(1_700_000_010.0, 1_700_000_000.0) == ("1700000010", "1700000000", [])
    assert cell_and_normal(1.5, 2.25) == ("1.5", "2.25", [])
    assert cell_and_normal(1.5, 1.5) == ("1.5", "", []) == cell_and_normal(1.5, np.nan)
    assert cell_and_normal(None, 2.0) == ("", "2", [])
    assert cell_and_normal(day, day + datetime.timedelta(microseconds=221_907)) == ("2024-01-05 04:00:00", "", [])
    assert cell_and_normal("red", "blue") == ("red", "blue", [])
    # What is usual as well, for a drift of a millionth may be what is odd.
    usual = ["100000.1", "100000.45"]
    assert cell_and_normal(100000.9, 100000.42, (100000.1, 100000.45)) == ("100000.9", "100000.42", usual)
    assert cell_and_normal(2.00000001, 2.00000002, (-1.5, 4.0)) == ("2.00000001", "2.00000002", ["-1.5", "4"])
    assert cell_and_normal(1.70035e12 + 1, 1.7e12) == ("1700350000001", "1700000000000", [])


def test_few_calibration_rows_do_not_make_every_row_ordinary(plane: Any) -> None:
    with pytest.warns(UserWarning, match="cannot promise"):
        detector = AE(**quick(AE)).fit(plane[0][:10])
    odd = plane[0][:3] * 1000
    assert not np.array_equal(detector.explain(odd).nearest, odd)


def test_what_is_usual_is_in_the_users_units() -> None:
    frame = pl.DataFrame({
        "kind": ["a", "b"] * 100, "paid": [True, False] * 100, "amount": np.arange(200.0),
        "day": pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 12, 1), "1d", eager=True)[:200],
    })  # fmt: skip
    found = AE(**quick(AE)).fit(frame).explain(frame[:1]).usual
    assert list(found) == ["amount", "day"]
    low, high = found["day"]
    assert frame["day"][0] <= low < high <= frame["day"][199] and low in frame["day"]
    assert AE(**quick(AE), store_rows=False).fit(frame).explain(frame[:1]).usual == {}


def test_what_adds_next_to_nothing_is_not_named() -> None:
    contributions = np.array([[-10.0, -0.2, -0.05, 3.0]])
    told = Explanation(
        np.zeros((1, 4)), np.zeros(1), contributions, np.zeros((1, 0)), np.zeros(1), np.zeros(1), np.zeros((1, 4)),
        True, tuple("abcd"), ordinary=np.ones(1, np.bool_),
    )  # fmt: skip
    assert [reason.column for reason in told.top(0, 4)] == ["a", "b"]


def test_maps_have_no_columns(digits: Any) -> None:
    detector = AE(**quick(AE)).fit(digits[0][:200])
    with pytest.raises(ValueError, match="top is for tables"):
        detector.explain(digits[0][:2]).top(0)
