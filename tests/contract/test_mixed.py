"""Tables of numbers, categories, booleans and dates, with holes: every detector takes them."""

from __future__ import annotations

import datetime
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from conftest import quick

from offmanifold import AE, VAE, MultiscaleDenoiser, NegativeVAE, OutlierDetector, auroc, diagnose, load
from offmanifold.data.remarks import far_off
from offmanifold.report.page import write_report

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot promise:UserWarning", "ignore:.*has collapsed:UserWarning")


def frame(n: int, seed: int = 0, *, odd: bool = False, gaps: float = 0.0) -> pl.DataFrame:
    """Colour and switch decide about size and weight, the hour about use; in odd rows the colour is another one."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    hours = rng.uniform(0, 24 * 60, n)
    size = 2.0 * kind + rng.normal(0, 0.3, n)
    made = pl.DataFrame({
        "colour": np.array(["red", "green", "blue"])[(kind + rng.integers(1, 3, n)) % 3 if odd else kind],
        "size": size,
        "weight": 3 * size + rng.normal(0, 0.3, n),
        "on": kind == 1,
        "when": [datetime.datetime(2024, 1, 1) + datetime.timedelta(hours=float(h)) for h in hours],
        "use": np.sin(2 * np.pi * hours / 24) + rng.normal(0, 0.1, n),
    })  # fmt: skip
    if gaps:
        kept = rng.random((n, 6)) >= gaps
        made = made.with_columns(
            pl.when(pl.Series(kept[:, i])).then(pl.col(name)).alias(name) for i, name in enumerate(made.columns)
        )
    return made


@pytest.fixture(scope="module")
def normal() -> pl.DataFrame:
    return frame(900)


@pytest.fixture
def fitted(detector_class: type[OutlierDetector], normal: pl.DataFrame) -> OutlierDetector:
    return detector_class(**quick(detector_class)).fit(normal)


def test_everything_a_detector_does(fitted: OutlierDetector, tmp_path: Path) -> None:
    new, odd = frame(300, 1), frame(50, 2, odd=True)
    scores = fitted.score_samples(new)
    assert scores.shape == (300,) and np.isfinite(scores).all()
    shuffled = pd.DataFrame(new.select(sorted(new.columns)).to_dict(as_series=False))
    np.testing.assert_array_equal(fitted.score_samples(shuffled), scores)
    fitted.save(tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors")
    for other in (loaded, pickle.loads(pickle.dumps(fitted))):
        np.testing.assert_array_equal(other.score_samples(new), scores)
    gappy = frame(100, 3, gaps=0.3)
    np.testing.assert_array_equal(loaded.p_values(gappy), fitted.p_values(gappy))
    told = loaded.explain(odd)
    assert told.contributions.shape == (50, 6) and told.columns == tuple(odd.columns)
    sums = told.contributions.sum(1) + told.latent.sum(1) + told.base + told.residual
    np.testing.assert_allclose(sums, told.score, rtol=1e-6)
    assert told.rows.equals(odd.with_columns(pl.col("when").dt.cast_time_unit("us")))
    reasons = [(i, reason) for i in range(50) for reason in told.top(i, 6)]
    assert any(reason.column == "colour" for _, reason in reasons)
    for i, reason in reasons:
        assert reason.value == odd[reason.column][i] and reason.contribution < 0
    for made in made_by(loaded, new[:20]):
        assert made.schema.names() == new.columns
        assert made["colour"].is_in(["red", "green", "blue"]).all() and made["on"].dtype == pl.Boolean


def made_by(detector: Any, rows: pl.DataFrame) -> list[pl.DataFrame]:
    found = [detector.reconstruct(rows)] if hasattr(detector, "reconstruct") else []
    return [*found, *([detector.sample(20, random_state=0)] if hasattr(detector, "sample") else [])]


@pytest.mark.parametrize("cls", [AE, VAE])
def test_odd_combinations_and_new_levels_are_found(cls: type[OutlierDetector], normal: pl.DataFrame) -> None:
    detector = cls(random_state=0, verbose=False).fit(normal)
    new, odd = frame(300, 1), frame(300, 2, odd=True)
    assert auroc(detector.score_samples(new), detector.score_samples(odd)).value > 0.95
    assert (detector.p_values(new) <= 0.05).mean() < 0.12
    told = detector.explain(odd[:50])
    assert sum(told.top(i, 1)[0].column == "colour" for i in range(50)) > 25
    unseen = new.with_columns(colour=pl.lit("purple"))
    assert (detector.predict(unseen) == -1).mean() > 0.9
    assert detector.explain(unseen[:2]).rows["colour"].to_list() == ["purple (a level not seen in training)"] * 2
    assert (detector.score_samples(unseen) < detector.score_samples(new)).mean() > 0.95
    for share in (0.1, 0.3):
        p = detector.p_values(frame(600, 5, gaps=share))
        assert abs((p <= 0.1).mean() - 0.1) < 0.08 and abs((p <= 0.5).mean() - 0.5) < 0.15
    reconstructed: Any = detector
    assert (reconstructed.reconstruct(new)["colour"] == new["colour"]).mean() > 0.95


@pytest.mark.parametrize("cls", [AE, VAE])
def test_calibration_rows_decide_nothing(cls: type[OutlierDetector], normal: pl.DataFrame) -> None:
    """Not even which levels there are."""
    clean = cls(**quick(cls)).fit(normal)
    (for_calibration, *_) = cls(**quick(cls)).split(len(normal))
    there = pl.int_range(pl.len()).is_in(for_calibration.tolist())
    spoiled = normal.with_columns(pl.when(there).then(pl.lit("x")).otherwise("colour").alias("colour"))
    other = cls(**quick(cls)).fit(spoiled)
    assert other.spec_ == clean.spec_
    new = frame(50, 1)
    np.testing.assert_array_equal(other.score_samples(new), clean.score_samples(new))


def test_learned_from_rows_with_gaps_and_without_scaling() -> None:
    rows = frame(600, gaps=0.2)
    for own in ({}, {"scale": None}):
        detector = AE(**quick(AE), **own).fit(rows)
        assert np.isfinite(detector.score_samples(frame(50, 1, gaps=0.5))).all()


def test_kinds_as_asked() -> None:
    rng = np.random.default_rng(0)
    rows = pl.DataFrame({"code": rng.integers(0, 4, 200), "x": rng.normal(size=200)})
    detector = AE(**quick(AE)).fit(rows, columns={"code": "category"})
    assert detector.spec_.details[0].levels == ("0", "1", "2", "3")  # type: ignore[index]
    assert detector.score_samples(pl.DataFrame({"code": [9], "x": [0.0]})) < detector.score_samples(rows[:1])


def test_an_array_has_no_text_or_dates(normal: pl.DataFrame) -> None:
    detector = AE(**quick(AE)).fit(normal)
    for rows in (np.zeros((2, normal.width)), normal.head(2).to_numpy()):
        with pytest.raises(ValueError, match="a data frame with categories or dates: 'colour'"):
            detector.score_samples(rows)


def test_columns_that_say_nothing_are_warned_of(normal: pl.DataFrame) -> None:
    rows = normal.with_row_index("id").with_columns(same=pl.lit("x"))
    with pytest.warns(UserWarning, match="'id' looks like an identifier") as caught:
        AE(**quick(AE)).fit(rows)
    assert any("'same' is constant" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("named", [True, False])
def test_a_few_values_that_make_a_columns_spread_are_warned_of(named: bool) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 3))
    rows[::50, 1], rows[1::100, 1] = -999, 9999
    name = "'b'" if named else "1"
    data = pl.DataFrame(rows, schema=list("abc"), orient="row") if named else rows
    with pytest.warns(UserWarning, match=rf"Column {name}: \d of its 210 values .* such as -999, .* missing \(NaN\)"):
        AE(**quick(AE)).fit(data)


@pytest.mark.parametrize(
    "cells",
    [
        np.random.default_rng(0).normal(size=400),
        np.exp(2 * np.random.default_rng(0).normal(size=400)),
        np.r_[np.random.default_rng(0).normal(size=399), 12.0],  # an outlier, by which the spread hardly grows
        np.r_[np.zeros(390), np.full(10, 999.0)],  # a rare level
        np.r_[np.random.default_rng(0).normal(size=200), np.full(200, -999.0)],  # two kinds of rows
        np.r_[np.random.default_rng(0).normal(size=10), -999.0],
        np.full(100, np.nan),
        np.ones(100),
    ],
)
def test_other_columns_have_no_value_far_off(cells: np.ndarray) -> None:
    assert far_off("a", cells) is None


@pytest.mark.parametrize("cls", [AE, MultiscaleDenoiser])
def test_the_nearest_normal_row_is_one_that_there_can_be(cls: type[OutlierDetector], normal: pl.DataFrame) -> None:
    detector = cls(random_state=0, verbose=False, steps=300).fit(normal)
    odd = frame(40, 5, odd=True)
    told = detector.explain(odd)
    assert told.ordinary.mean() > 0.8
    # Where another colour is all it takes, nothing else is changed.
    kept = (told.nearest["size"] == odd["size"]) & (told.nearest["on"] == odd["on"])
    assert kept.fill_null(value=False).mean() > 0.5
    assert told.nearest["colour"].is_null().to_numpy().tolist() == (~told.ordinary).tolist()
    found = told.nearest.filter(told.ordinary)
    # By the score of the row as it is shown; a little is lost where numbers go into the network and back.
    assert (detector.p_values(found) > 0.15).all()
    # What need not change is the row's own, to the last digit.
    usual = normal.filter(pl.Series(detector.p_values(normal) > 0.3))[:20]
    assert detector.explain(usual).nearest.equals(usual.with_columns(pl.col("when").dt.cast_time_unit("us")))


@pytest.mark.parametrize("cls", [AE, VAE])
def test_heavy_tails(cls: type[OutlierDetector], tmp_path: Path) -> None:
    """Beside a few huge values nobody else is seen, unless tails are brought in."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1500, 1))
    rows = np.exp(2 * x + np.array([0, 1, 2, 3]) + 0.2 * rng.normal(size=(1500, 4)))
    odd = np.exp(2 * rng.normal(size=(300, 4)) + np.array([0, 1, 2, 3]))
    found = {}
    for scale in ("standard", "robust"):
        detector = cls(random_state=0, verbose=False, scale=scale).fit(rows[:1200])
        found[scale] = auroc(detector.score_samples(rows[1200:]), detector.score_samples(odd)).value
    assert found["robust"] > max(0.95, found["standard"] + 0.05)
    detector.save(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(load(tmp_path / "m.safetensors").score_samples(odd), detector.score_samples(odd))
    assert isinstance(detector.explain(odd[:5]).nearest, np.ndarray)
    reconstructed: Any = detector
    made = reconstructed.reconstruct(rows[1200:])
    assert made.shape == (300, 4) and np.median(np.abs(np.log(np.abs(made) / rows[1200:]))) < 0.5


def test_ten_rows() -> None:
    assert np.isfinite(AE(**quick(AE)).fit(frame(10, gaps=0.2)).score_samples(frame(10, 1))).all()


def test_a_hundred_thousand_columns_are_weighed_first(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = pl.from_numpy(np.random.default_rng(0).normal(size=(20, 100_000)).astype(np.float32))
    monkeypatch.setattr("offmanifold.detectors.base.memory_of", lambda device: 2.0**24)
    with pytest.raises(ValueError, match="20 rows of 100,000 cells take 0.0224 GiB in training; .* leave columns out"):
        AE(**quick(AE)).fit(rows)
    monkeypatch.setattr("offmanifold.detectors.base.memory_of", lambda device: 2.0**30)
    with pytest.raises(ValueError, match="A network of .* weights takes .* GiB to train; this device has 1 GiB"):
        AE(**quick(AE) | {"hidden": (1024,)}).fit(rows)
    monkeypatch.setattr("offmanifold.detectors.base.LARGE", 0)
    with pytest.warns(UserWarning, match=r"Rows of 20 cells make .* weights, which takes 0.0 GiB to train"):
        AE(**quick(AE)).fit(rows[:, :20])


def test_it_is_examined_and_reported(normal: pl.DataFrame, tmp_path: Path) -> None:
    detector = VAE(**quick(VAE)).fit(normal)
    held_out = frame(300, 1, gaps=0.1)
    diagnosis = diagnose(detector, held_out)
    assert not any(finding.verdict == "not examined" for finding in diagnosis.findings)
    shares = diagnosis["stability"].details["shares"]
    assert list(shares) == normal.columns
    write_report(detector, diagnosis, tmp_path / "r.html", title="t", X=frame(100, 2, odd=True), normal=held_out)
    assert "colour" in (tmp_path / "r.html").read_text()


def test_errors_of_numbers_are_compared_with_the_variance_of_numbers() -> None:
    """Cells of categories, whose variance is small, are in neither: an unconditional mean errs by all there is."""
    rng = np.random.default_rng(0)
    rows = pl.DataFrame({"a": rng.normal(size=400), "b": rng.normal(size=400)})
    rows = rows.with_columns(**{name: pl.Series([f"level{i}" for i in rng.integers(0, 8, 400)]) for name in ("c", "d")})
    detector = NegativeVAE(**quick(NegativeVAE), negatives="adversarial").fit(rows)
    for parameter in detector.module_.decoder.parameters():
        parameter.data.zero_()
    judge = detector._phases(detector.module_, detector.settings_)[0].judge
    assert judge is not None
    _, record = judge(torch.from_numpy(detector.prepared(rows)).float(), torch.Generator().manual_seed(0))
    assert record["relative_error"] == pytest.approx(1, abs=0.05)
    continued = VAE(**quick(VAE), gamma="continuation").fit(rows)
    assert continued.settings_["gamma_start"] == pytest.approx(1, rel=0.1)
    assert VAE(**quick(VAE), gamma="continuation").fit(rows[["c", "d"]]).settings_["gamma_start"] > 0
