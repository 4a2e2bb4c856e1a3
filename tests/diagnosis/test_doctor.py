"""The doctor finds what was broken on purpose, and says so in words that help."""

from __future__ import annotations

import copy
import dataclasses
import json
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import quick, trained
from scipy.stats import kstest

from offmanifold import AE, IGEBM, VAE, NegativeVAE, OutlierDetector, SemiSupervisedVAE, diagnose, load
from offmanifold.data.inputs import Rows as Rows_
from offmanifold.detectors.latent import LatentMixin
from offmanifold.diagnosis import doctor
from offmanifold.diagnosis.checks import CHECKS, identity, manifold, red_team
from offmanifold.diagnosis.combination import BIAS, TERMS, combine, features
from offmanifold.diagnosis.findings import Finding
from offmanifold.diagnosis.patient import Patient
from offmanifold.measures import Estimate

NAMES = [check.name for check in CHECKS]
Rows = np.ndarray


def test_an_honest_detector_passes_every_check_there_is(honest: OutlierDetector, world: Any) -> None:
    told: list[str] = []
    diagnosis = diagnose(honest, world(600, 2), budget="1h", report=told.append)
    assert [finding.check for finding in diagnosis.findings] == NAMES
    assert told == [check.question for check in CHECKS]
    assert not [finding for finding in diagnosis.findings if finding.verdict == "fail"]
    assert diagnosis["red team"].number.value > 0.8
    assert diagnosis.verdict != "distrust" and diagnosis.rows == diagnosis.given == 600
    for finding in diagnosis.findings:
        number = finding.number
        assert number is None or number.low <= number.value <= number.high
        assert finding.told.endswith(".") and (finding.advice == "" or finding.advice.endswith("."))
        assert finding.advice or finding.verdict not in ("warn", "fail")
    json.dumps(diagnosis.to_json(), allow_nan=False)
    with pytest.raises(KeyError, match="'red team'"):
        diagnosis["no such check"]
    assert str(diagnosis).startswith(diagnosis.sentence) and str(diagnosis).count("\n") == len(CHECKS)
    again = diagnose(honest, world(600, 2), budget="1h")
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(diagnosis, seconds=0)


def test_every_detector_can_be_examined(detector_class: type[OutlierDetector], world: Any, digits: Any) -> None:
    for rows in (world(200, 1), digits[0][:200]):
        detector = detector_class(**quick(detector_class)).fit(rows)
        diagnosis = diagnose(detector, rows, budget="1h")
        assert not [finding for finding in diagnosis.findings if finding.verdict == "not examined"]
        families = diagnosis["red team"].details["families"]
        assert len(families) == (8 if rows.ndim == 2 else 9)
        assert all(set(row) == {"detector", "kNN", "PCA"} for row in families.values())
        made = diagnosis["manifold"].details.get("families", {})
        prior = getattr(detector, "latent_prior", None)
        assert set(made) == (
            {"between", "prior"} if prior else {"between"} if isinstance(detector, LatentMixin) else set()
        )
        assert all(set(row) == {"detector", "kNN", "PCA"} for row in made.values())


def flipped(detector: Any) -> None:
    right = detector._energy_terms
    detector._energy_terms = lambda model, rows: {name: -term for name, term in right(model, rows).items()}


def test_a_score_of_the_wrong_sign_is_caught(world: Any) -> None:
    detector = trained(AE).fit(world(600, 1))
    flipped(detector)
    diagnosis = diagnose(detector, world(400, 2))
    assert diagnosis.verdict == "distrust"
    assert diagnosis["red team"].verdict == "fail" and diagnosis["red team"].number.value < 0.3
    assert diagnosis["identity"].verdict == "fail"


def test_a_collapsed_posterior_is_named(world: Any) -> None:
    with pytest.warns(UserWarning, match="collapsed"):
        detector = trained(VAE, beta=100).fit(world(600, 1))
    diagnosis = diagnose(detector, world(400, 2))
    assert diagnosis["latents"].verdict == "fail" and "collapsed" in diagnosis["latents"].told


def test_latents_that_tell_of_noise_are_counted() -> None:
    """Codes along a line, and across it, where rows that are near each other have nothing in common."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(np.concatenate([np.ones((4, 1)), rng.normal(size=(4, 3))], 1))[0]
    rows = (rng.normal(size=(1200, 4)) * [10, 0.01, 0.01, 0.01]) @ basis.T
    detector = copying(rows, noise=0, scale=None)
    with torch.no_grad():
        (linear,) = (layer for layer in detector.module_.encoder.modules() if isinstance(layer, torch.nn.Linear))
        linear.weight.copy_(torch.from_numpy(basis.T))
    found = diagnose(detector, rows, checks=["latents"])["latents"]
    assert [name for name, one in found.details["shared"].items() if one["high"] >= 0.2] == ["latent 1"]
    assert found.verdict == "fine" and "3 of 4 codes differ between nearest rows as noise does" in found.told
    # Codes that have a prior are compared with it.
    gaussian = copying(rng.normal(size=(1200, 3)), VAE, scale=None)
    found = diagnose(gaussian, rng.normal(size=(600, 3)), checks=["latents"])["latents"]
    assert found.number is not None and found.number.low < 0.01 and found.meaning == "MMD² of codes and prior"
    assert found.number.to_json() == found.details["aggregate_mmd"]


def test_what_a_step_costs_is_told_by_direction(honest: OutlierDetector, world: Any) -> None:
    costs = diagnose(honest, world(400, 2), checks=["identity"])["identity"].details["cost_of_a_step"]
    assert set(costs) == {"at random", "towards the nearest", "away from it", "to another"}
    assert costs["at random"] > max(costs["towards the nearest"], 0)


def test_simple_images_that_pass_are_told(digits: Any) -> None:
    detector: Any = trained(AE, steps=2).fit(digits[0][:200])
    detector._energy_terms = lambda model, rows: {"e": (rows - rows.mean((2, 3), keepdim=True)).abs().sum((1, 2, 3))}
    found = diagnose(detector, digits[0][200:400], checks=["complexity"])["complexity"]
    assert found.details["simple"]["constant"] == 1.0 and "Of constant images 100%" in found.told
    assert found.verdict in ("warn", "fail") and "imple" in found.advice


def test_how_much_hangs_on_the_calibration_rows_is_told(world: Any) -> None:
    def changed(n: int) -> float:
        detector = trained(AE, steps=20).fit(world(n, 1))
        details = diagnose(detector, world(500, 2), checks=["stability"])["stability"].details
        assert set(details["order_kept"]) == set(details["shares"]) and max(details["order_kept"].values()) < 1
        return float(details["decisions_that_change"])

    # Of n calibration rows a threshold at a rate of .05 is off by about √(.05 · .95 / n).
    few, many = changed(500), changed(10_000)
    assert 0.4 * (0.0475 / 100) ** 0.5 < few < 1.6 * (0.0475 / 100) ** 0.5
    assert many < 0.5 * few


def test_a_column_that_drowns_the_others_is_named(world: Any) -> None:
    unit = np.array([1, 1, 1, 1e4, 1, 1])
    detector = trained(AE, scale=None, noise=0).fit(world(600, 1) * unit)
    diagnosis = diagnose(detector, world(400, 2) * unit)
    assert diagnosis["stability"].verdict in ("warn", "fail") and "column 3" in diagnosis["stability"].told
    assert diagnosis["scaling"].verdict == "fail" and diagnosis["scaling"].told.startswith("5 of 6 columns hardly")
    assert diagnosis["scaling"].details["faint"][-1] != "column 3" and "'standard'" in diagnosis["scaling"].advice
    assert diagnosis.verdict != "trust"


@pytest.mark.parametrize("cls", [AE, VAE])
def test_rows_with_gaps_keep_their_false_alarm_rate(cls: type[OutlierDetector], world: Any) -> None:
    """The check scores rows as they came, with what is missing, as the detector was calibrated."""

    def gappy(n: int, seed: int) -> Rows:
        return np.where(np.random.default_rng(seed).random((n, 6)) < 0.2, np.nan, world(n, seed))

    diagnosis = diagnose(trained(cls).fit(gappy(1200, 1)), gappy(800, 2), checks=["calibration", "drift"])
    assert diagnosis["calibration"].verdict == diagnosis["drift"].verdict == "fine"
    assert diagnosis["calibration"].number.value < 0.085


def test_all_methods_see_the_same_outliers_of_a_mixed_table() -> None:
    """A category is one of its levels after an exchange of cells, too, and a row that is itself again is no outlier."""
    rng = np.random.default_rng(0)
    kind = rng.integers(3, size=400)
    rows = pl.DataFrame({
        "kind": np.array(list("abc"))[kind], "like": np.array(list("xyz"))[(kind + (rng.random(400) < 0.1)) % 3],
        "size": kind + 0.1 * rng.normal(size=400), "more": rng.normal(size=400), "new": rng.random(400) < 0.5,
    })  # fmt: skip
    patient = Patient(trained(VAE).fit(rows[:250]), rows[250:])
    for family in ("replaced", "exchanged", "displaced", "jittered"):
        found = patient.made(family)
        seen = Rows_(patient.users(found), patient.detector.spec_, "").take(slice(None)).astype(float)
        np.testing.assert_allclose(found, patient.scaler.transform(seen), atol=1e-5)
    families = red_team(patient).details["families"]
    assert all(0 <= row[name]["value"] <= 1 for row in families.values() for name in row)
    # Steps off the data are steps of numbers.
    assert patient.steppable.tolist() == [
        name == "number" for name in ["category"] * 8 + ["number", "number", "boolean"]
    ]
    assert identity(patient).verdict in ("fine", "warn", "fail")


def test_which_images_pass_is_said_the_right_way_round(digits: Any) -> None:
    detector: Any = trained(AE, steps=2).fit(digits[0][:200])
    busy = torch.tensor([[1.0, -1.0] * 4])
    for sign, word in ((-1, "Complex"), (1, "Simple")):
        detector._energy_terms = lambda model, rows, sign=sign: {"e": sign * (rows[:, 0] * busy).abs().sum((1, 2))}
        flat = np.linspace(0, 1, 60)[:, None, None] * np.random.default_rng(0).random((60, 8, 8))
        flat[:30] = flat[:30].mean((1, 2), keepdims=True)
        found = diagnose(detector, flat, checks=["complexity"])["complexity"]
        assert found.advice.startswith(word) and np.sign(found.number.value) == -sign


def test_what_is_not_finite_counts_as_most_abnormal(world: Any) -> None:
    detector: Any = trained(AE, steps=2).fit(world(100, 1))
    detector._energy_terms = lambda model, rows: {"e": torch.full((len(rows),), -torch.inf)}
    assert (Patient(detector, world(40, 2)).scores < -1e300).all()


def test_columns_that_hardly_count_are_named_whatever_they_are(world: Any) -> None:
    frame = {f"c{i}": column for i, column in enumerate(world(300, 1).T)}
    frame |= {"kind": np.array(list("abc") * 100), "same": np.ones(300)}

    def scaling(scale: str | None, unit: float) -> Finding:
        rows = pl.DataFrame(frame | {"c1": frame["c1"] * unit})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a constant column
            return diagnose(trained(AE, scale=scale, steps=2).fit(rows))["scaling"]

    assert scaling("standard", 1e-3).verdict == "fine"  # all weigh the same, a category's cells together
    assert scaling(None, 1.0).verdict == "fine"
    small = scaling(None, 1e-3)
    assert (small.verdict, small.details) == ("fine", {"faint": ["c1"]}) and "1 of 7 columns" in small.told
    assert scaling(None, 1e3).verdict == "fail"
    pictures = diagnose(trained(AE, steps=2).fit(np.zeros((30, 4, 4)) + np.linspace(0, 1, 30)[:, None, None]))
    assert pictures["scaling"].verdict == "not applicable"


def test_a_model_that_copies_whatever_comes_is_caught(world: Any) -> None:
    detector: Any = trained(AE).fit(world(600, 1))
    # What is left of the error is no sign of anything.
    detector._energy_terms = lambda model, rows: {"reconstruction": (1e4 * rows.sum(1)).sin().square()}
    diagnosis = diagnose(detector, world(400, 2))
    for name in ("identity", "red team"):
        assert diagnosis[name].verdict == "fail" or diagnosis[name].number.low < 0.5 < diagnosis[name].number.high
        assert diagnosis[name].advice
    assert diagnosis.verdict == "distrust"


def copying(rows: Rows, cls: Any = AE, **own: Any) -> Any:
    """A linear model whose codes are the rows, and whose decoder gives codes back."""
    detector = trained(cls, network="mlp", hidden=[], latent_dim=rows.shape[1], steps=3, **own).fit(rows)
    with torch.no_grad():
        for part in (detector.module_.encoder, detector.module_.decoder):
            (linear,) = (layer for layer in part.modules() if isinstance(layer, torch.nn.Linear))
            linear.weight.copy_(torch.eye(*linear.weight.shape))
            linear.bias.zero_()
    return detector


def test_a_manifold_that_bridges_clusters_is_wider_than_the_data() -> None:
    rng = np.random.default_rng(0)
    rows = 0.1 * rng.normal(size=(600, 3)) + rng.choice([-10, 10], size=(600, 1))
    detector = copying(rows, noise=0)
    patient = Patient(detector, rows)
    (between,) = patient.decoded().values()
    neighbours = np.roll(patient.normal, 1, 0)
    np.testing.assert_allclose(between, (patient.normal + neighbours) / 2, atol=1e-5)
    bridges = np.sign(patient.normal[:, 0]) != np.sign(neighbours[:, 0])
    assert 0.3 < bridges.mean() < 0.7
    # Its error is nought everywhere, but for rounding: all that is asked is what it calls an outlier.
    detector.calibration_scores_ = np.full(100, -1.0)
    finding = manifold(patient)
    far = patient.far(between)
    assert far[bridges].all() and far.mean() < bridges.mean() + 0.05
    assert finding.number is not None and finding.number.value == far.mean() and finding.verdict == "warn"
    assert finding.details["families"]["between"]["kNN"]["value"] > 0.5
    # One that does not let them pass makes them up all the same.
    detector.calibration_scores_ = np.full(100, 1.0)
    passed = manifold(patient)
    assert passed.number is not None and passed.number.value == 0 and passed.verdict == "fine" and not passed.advice


def test_codes_are_decoded_where_the_prior_has_them() -> None:
    rows = np.random.default_rng(0).normal(size=(4000, 3))
    sphere = Patient(copying(rows, noise=0, latent="sphere", scale=None), rows, most=4000)
    for made_up in sphere.decoded().values():
        lengths = np.linalg.norm(sphere.users(made_up), axis=1)
        np.testing.assert_allclose(lengths, 1, atol=1e-5)
    gaussian = Patient(copying(rows, VAE, scale=None), rows, most=4000)
    prior = gaussian.users(gaussian.decoded()["prior"])
    assert all(kstest(column, "norm").pvalue > 0.001 for column in prior.T)


@pytest.mark.parametrize("kind", ["none", "discrete", "continuous"])
def test_labels_are_drawn_for_codes(kind: str, world: Any) -> None:
    rows = world(200, 1)
    y = {"none": None, "discrete": np.arange(200) % 2, "continuous": rows[:, 0]}[kind]
    labels = "continuous" if kind == "continuous" else "auto"
    detector = trained(SemiSupervisedVAE, labels=labels, steps=3).fit(rows, y)
    patient = Patient(detector, rows)
    for name, made_up in patient.decoded().items():
        assert made_up.shape == patient.normal.shape and np.isfinite(made_up).all()
        np.testing.assert_array_equal(made_up, patient.decoded()[name])


def test_normal_rows_that_are_not_those_of_training(honest: OutlierDetector, world: Any) -> None:
    moved = world(400, 2)
    moved[:, 4] += 1
    finding = diagnose(honest, moved)["calibration"]
    assert finding.verdict == "fail" and "column 4 have moved" in finding.told
    drift = diagnose(honest, moved)["drift"]
    assert drift.verdict == "warn" and drift.details["moved"] == ["column 4"] and ": column 4." in drift.told
    # One column of six moved by one.
    truth = 1 / world(10_000, 3)[:, 4].std() / 6**0.5
    assert drift.number is not None and drift.number.low < truth < drift.number.high
    # Half of what is given as normal is not.
    mixed = world(400, 2)
    mixed[::2] = np.random.default_rng(0).normal(0, 3, size=(200, 6))
    assert diagnose(honest, mixed)["calibration"].verdict == "fail"


def test_rows_learned_by_heart_are_noticed(world: Any) -> None:
    # Weights are kept by held-out rows: what a model that knows its rows by heart records has to be made up.
    detector = trained(AE).fit(world(600, 1))
    detector.calibration_scores_ = detector.calibration_scores_ - detector.calibration_scores_.std()
    gap = {"value": 2.0, "low": 1.6, "high": 2.4, "level": 0.95}
    detector.fit_report_ = {"score": {**detector.fit_report_["score"], "gap": gap, "spread": 1.0}}
    diagnosis = diagnose(detector, world(400, 2))
    assert diagnosis["calibration"].verdict == "warn" and "trained on" in diagnosis["calibration"].told
    assert diagnosis["training"].verdict == "fail" and "2.00 standard deviations" in diagnosis["training"].told
    assert diagnosis.verdict == "distrust" and diagnosis.weighing_most[0] == "training"


def test_fresh_rows_of_the_same_kind_raise_no_alarm(world: Any) -> None:
    """The checks on calibration are exact tests: at most one in a hundred or so warns."""
    detector = trained(AE).fit(world(400, 1))
    grades = [diagnose(detector, world(200, seed), random_state=seed)["calibration"].verdict for seed in range(2, 14)]
    assert grades.count("fine") >= 11


def test_the_rows_that_are_stored_do_where_none_are_given(honest: OutlierDetector, world: Any, tmp_path: Path) -> None:
    """But they cannot tell whether the decision holds on rows that come now."""
    honest.save(tmp_path / "m.safetensors")
    diagnosis = diagnose(load(tmp_path / "m.safetensors"), budget="1h")
    assert diagnosis.stored and (diagnosis.rows, diagnosis.given) == (200, 0)
    unseen = {finding.check for finding in diagnosis.findings if finding.verdict == "not examined"}
    assert unseen == {"calibration", "drift"} and "neither trained nor calibrated" in diagnosis["drift"].told
    assert diagnosis.failure_probability is not None and diagnosis["red team"].number.value > 0.8
    again = diagnose(honest, budget="1h")
    assert dataclasses.replace(again, seconds=0) == dataclasses.replace(diagnosis, seconds=0)
    assert not diagnose(honest, world(100, 2)).stored


def test_without_enough_rows_what_was_recorded_is_examined(honest: OutlierDetector, world: Any) -> None:
    alone = trained(AE, store_rows=False).fit(world(200, 1))
    for rows, count in ((None, 0), (world(3, 2), 3)):
        diagnosis = diagnose(alone, rows)
        assert not diagnosis.stored
        assert diagnosis.verdict == "care" and diagnosis.failure_probability is None
        assert diagnosis["training"].verdict != "not examined"
        assert f"at least 20 normal rows; got {count}" in diagnosis["red team"].told
        assert "too little could be examined" in diagnosis.sentence


def test_drift_is_not_seen_where_there_is_none(world: Any) -> None:
    detector = trained(AE).fit(world(150, 1))
    found = [diagnose(detector, world(1000, seed))["drift"] for seed in range(2, 8)]
    assert sum(bool(finding.details["moved"]) for finding in found) <= 1
    assert all(finding.verdict == "fine" for finding in found)


def test_outliers_among_the_training_rows_are_a_drift(world: Any) -> None:
    rows = world(800, 1)
    rows[::5] += 3
    diagnosis = diagnose(trained(AE).fit(rows), world(400, 2))
    assert diagnosis["drift"].verdict == "warn" and "outliers were among the training rows" in diagnosis["drift"].advice
    assert diagnosis.verdict != "trust" and "drift" in diagnosis.weighing_most


def test_images_that_moved_are_told_by_patch(digits: Any) -> None:
    rows = digits[0]
    detector = trained(AE, steps=3).fit(rows[:600])
    assert diagnose(detector, rows[600:1000], budget="1h")["drift"].verdict == "fine"
    moved = rows[600:1000].copy()
    moved[:, :2, :2] = 1
    finding = diagnose(detector, moved, budget="1h")["drift"]
    assert finding.verdict == "warn" and finding.details["moved"][0] == "patch 1, 1 of 4 × 4"


def test_files_of_before_moments_were_kept_know_of_no_drift(honest: OutlierDetector, world: Any) -> None:
    old = copy.copy(honest)
    old.training_moments_ = None
    assert diagnose(old, world(100, 2))["drift"].verdict == "not applicable"


def test_a_detector_that_contradicts_neighbours_is_told(honest: OutlierDetector, world: Any) -> None:
    assert diagnose(honest, world(400, 2), checks=["agreement"])["agreement"].verdict == "fine"
    detector = trained(AE).fit(world(600, 1))
    flipped(detector)
    diagnosis = diagnose(detector, world(400, 2), checks=["agreement"])
    assert [finding.check for finding in diagnosis.findings] == ["agreement"]
    assert diagnosis["agreement"].verdict == "fail" and diagnosis["agreement"].number.high < 0
    with pytest.raises(ValueError, match="Did you mean 'agreement'"):
        diagnose(honest, world(100, 2), checks=["agrement"])


def test_refits_are_made_where_the_budget_allows(world: Any) -> None:
    detector = trained(AE).fit(world(600, 1))
    finding = diagnose(detector, world(400, 2), budget="1h", checks=["refits"])["refits"]
    assert finding.verdict == "fine" and finding.number.value > 0.5
    detector.history_[-1] |= {"seconds": 1000.0}
    finding = diagnose(detector, world(400, 2), budget="10min", checks=["refits"])["refits"]
    assert finding.verdict == "not examined" and "about 2000 seconds" in finding.told
    # Energies of an untrained network are chance.
    noise = np.random.default_rng(0).normal(size=(500, 30))
    chance = IGEBM(**quick(IGEBM) | {"steps": 1}).fit(noise)
    assert diagnose(chance, noise, budget="1h", checks=["refits"])["refits"].verdict == "warn"


def test_refits_are_shown_rows_as_a_user_knows_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Codes of categories are places in one detector's list of levels; another may never have seen the rare one."""
    rng = np.random.default_rng(0)
    kind = np.array(["b", "c", "d"])[rng.integers(3, size=400)]
    kind[:6] = "a"
    rows = pl.DataFrame({"kind": kind, "size": rng.normal(size=400) + 3 * (kind == "c")})
    detector = AE(**quick(AE)).fit(rows)
    seen: list[Any] = []
    original = AE.score_samples
    monkeypatch.setattr(AE, "score_samples", lambda self, X: seen.append((self, X)) or original(self, X))
    diagnose(detector, rows, budget="1h", checks=["refits"])
    of_refits = [X for refit, X in seen if refit is not detector]
    assert len(of_refits) == 2
    for X in of_refits:
        unknown = X.with_columns(pl.col("size").round(4)).join(
            rows.with_columns(pl.col("size").round(4)), on=["kind", "size"], how="anti"
        )
        assert unknown.is_empty()


def test_refits_that_cannot_be_made_are_told(world: Any) -> None:
    rows = world(400, 1)
    detector = trained(IGEBM, steps=3).fit(rows)
    rows[np.arange(400), np.arange(400) % 6] = np.nan  # which learns from complete rows alone
    finding = diagnose(detector, rows, budget="1h", checks=["refits"])["refits"]
    assert finding.verdict == "not applicable" and "learns from complete rows" in finding.told


def test_drift_is_known_from_the_file(honest: OutlierDetector, world: Any, tmp_path: Path) -> None:
    honest.save(tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    rows = world(200, 2) + 0.2
    assert diagnose(again, rows, checks=["drift"])["drift"] == diagnose(honest, rows, checks=["drift"])["drift"]


def test_refits_of_labelled_detectors_are_not_made(world: Any) -> None:
    rows = world(200, 1)
    labelled = trained(SemiSupervisedVAE, steps=3).fit(rows, np.arange(200) % 2)
    told = trained(NegativeVAE, steps=3).fit(rows, negatives=rows + 5)
    for detector in (labelled, told):
        assert diagnose(detector, rows, budget="1h", checks=["refits"])["refits"].verdict == "not applicable"


def test_rows_that_repeat_and_single_columns_have_no_direction_off(world: Any) -> None:
    rows = np.random.default_rng(0).integers(0, 3, size=(600, 3)).astype(float)
    assert diagnose(trained(AE).fit(rows), rows)["identity"].verdict == "not applicable"
    column = np.random.default_rng(0).normal(size=(600, 1))
    diagnosis = diagnose(trained(AE).fit(column), column)
    assert diagnosis["identity"].verdict == diagnosis["stability"].verdict == "not applicable"
    assert diagnosis.verdict != "distrust"


def test_many_rows_are_sampled(honest: OutlierDetector, world: Any) -> None:
    diagnosis = diagnose(honest, world(5000, 2))
    assert (diagnosis.rows, diagnosis.given) == (1000, 5000)


def test_a_budget_that_is_used_up_is_said(honest: OutlierDetector, world: Any) -> None:
    assert diagnose(honest, world(100, 2), budget=np.int64(60), checks=["drift"])["drift"].verdict == "fine"
    diagnosis = diagnose(honest, world(100, 2), budget=1e-9)
    assert "budget of 1e-09 seconds was used up" in diagnosis["attack"].told
    for budget in ("soon", 0, "-2s", "1.2.3s", None):
        with pytest.raises(ValueError, match="budget must be 'auto'"):
            diagnose(honest, world(100, 2), budget=budget)
    with pytest.raises(ValueError, match="5 features"):
        diagnose(honest, world(100, 2)[:, :5])


def test_what_the_budget_left_out_is_not_trusted(
    honest: OutlierDetector, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(doctor, "time", types.SimpleNamespace(monotonic=lambda: now[0]))

    def examined_until(check: str) -> Any:
        now[0] = 0.0
        last = next(one.question for one in CHECKS if one.name == check)
        return diagnose(honest, world(600, 4), budget=60, report=lambda told: now.__setitem__(0, 99.0 * (told == last)))

    whole = examined_until("refits")
    assert whole.verdict == "trust" and "left out" not in whole.sentence
    some = examined_until("red team")
    assert some.verdict == "care" and some.failure_probability is not None
    assert some.sentence.endswith(" The budget left out agreement, identity, stability.")
    # The search was not made in the zoo either, and the last two never fail.
    enough = examined_until("complexity")
    assert [one.check for one in enough.findings if one.verdict == "not examined"] == ["attack", "manifold", "refits"]
    assert enough.verdict == "trust" and enough.sentence == whole.sentence
    nothing = examined_until("scaling")
    assert nothing.verdict == "care" and "left out calibration, drift, red team" in nothing.sentence
    # Nobody asked for other checks, or their rows are wanting: that is no matter of the budget.
    few = diagnose(honest, world(600, 4), checks=["training", "red team", "agreement"])
    assert few.verdict == "trust" and "left out" not in diagnose(honest).sentence


def test_constant_and_repeated_rows_do_not_break_it() -> None:
    rows = np.zeros((80, 3))
    detector = trained(AE, steps=20).fit(rows)
    diagnosis = diagnose(detector, rows)
    assert [finding.check for finding in diagnosis.findings] == NAMES
    json.dumps(diagnosis.to_json(), allow_nan=False)
    images = np.zeros((80, 8, 8), np.uint8)
    assert diagnose(trained(AE, steps=20).fit(images), images)["complexity"].number.value == 0


def test_the_drawn_numbers_are_the_doctors_own(honest: OutlierDetector, world: Any) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    diagnose(honest, world(100, 2))
    assert torch.equal(before, torch.get_rng_state())


def finding(check: str, verdict: str = "fine", value: float | None = None, **details: Any) -> Finding:
    number = None if value is None else Estimate(value, value, value)
    return Finding(check, verdict, "Told.", number, details=details)  # type: ignore[arg-type]


def examined(difference: float, agreement: float, drift: float, **grades: str) -> list[Finding]:
    families = {"permuted": {"detector": {"value": 0.8 + difference}, "kNN": {"value": 0.8}}}
    return [
        *(finding(check, grades.get(check, "fine")) for check in ("training", "latents", "calibration")),
        finding("red team", value=0.8 + difference, families=families),
        finding("agreement", value=agreement), finding("drift", "warn" if drift else "fine", value=drift),
    ]  # fmt: skip


def test_the_probability_is_the_regressions() -> None:
    for difference, agreement, drift in ((0.05, 0.9, 0.0), (-0.3, 0.1, 0.4)):
        findings = examined(difference, agreement, drift)
        found = features(findings)
        assert found == pytest.approx({
            "red team against neighbours": difference, "agreement": agreement, "quiet drift": float(drift > 0),
        })  # fmt: skip
        exponent = BIAS + sum(
            TERMS[name].weight * (value - TERMS[name].mean) / TERMS[name].scale for name, value in found.items()
        )
        assert combine(findings)[1] == pytest.approx(1 / (1 + np.exp(-exponent)))
    assert [name for name, term in TERMS.items() if term.weight > 0] == ["quiet drift"]
    # Rows that have moved and raise alarms are for the check of calibration.
    assert features(examined(0.0, 0.5, 1.0, calibration="fail"))["quiet drift"] == 0.0


def test_findings_add_up_to_a_verdict() -> None:
    assert combine(examined(0.1, 0.95, 0.0))[0] == "trust"
    assert combine(examined(-0.4, 0.3, 0.9))[0] == "distrust"
    assert combine(examined(0.1, 0.95, 0.0, calibration="warn"))[0] == "care"
    # What failed is named before what weighs more but did not.
    worse = [*examined(-0.2, -0.5, 1.0)]
    assert combine(worse)[2][0] != "red team"
    worse[3] = dataclasses.replace(worse[3], verdict="fail")
    assert combine(worse)[2][0] == "red team"
    verdict, probability, weighing = combine(examined(0.1, 0.95, 0.0, calibration="fail"))
    assert verdict == "distrust" and probability is not None and probability < 0.2 and weighing[0] == "calibration"
    # What pushed the other way is not told.
    assert weighing == ("calibration",)
    moved = combine(examined(0.5, 0.95, 1.0))
    assert moved[0] == "care" and moved[1] is not None and moved[1] < 0.2 and "drift" in moved[2]
    for grades in ({"calibration": "warn"}, {"training": "warn"}):
        assert combine(examined(0.1, 0.95, 0.0, **grades))[2] == tuple(grades)
    one_check = [*examined(0.1, 0.95, 0.0), finding("stability", "fail")]
    assert combine(one_check)[0] == "care" and combine(one_check)[2] == ("stability",)
    assert combine([*examined(0.1, 0.95, 0.0), finding("manifold", "warn")]) == combine(examined(0.1, 0.95, 0.0))
    # Without a red team there is no probability.
    recorded = examined(0.1, 0.95, 0.0)[:3]
    assert combine(recorded) == ("care", None, ())
    assert combine([finding("latents", "fail"), *recorded[2:]])[:2] == ("distrust", None)
