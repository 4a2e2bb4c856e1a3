"""Each check against cases whose answer is known: made-up scores, records and rows, and no training."""

from __future__ import annotations

import types
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import quick, trained
from scipy.stats import norm
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from offmanifold import AE, VAE, MultiscaleDenoiser, OutlierDetector, diagnose
from offmanifold.diagnosis import checks, recorded
from offmanifold.diagnosis.answers import answers, overfitted
from offmanifold.diagnosis.capacity import suggest_capacity
from offmanifold.diagnosis.comparison import Comparison
from offmanifold.diagnosis.findings import FEWEST_TO_TRUST
from offmanifold.diagnosis.negatives import rate_negatives
from offmanifold.diagnosis.patient import Patient
from offmanifold.measures import Estimate
from offmanifold.measures.shift import Moments, shift

# What two cores examine in a second.
EXAMINED = ("training", "latents", "calibration", "drift", "red team", "agreement")
Array = np.ndarray


def test_few_rows_are_no_reason_for_trust(honest: Any, world: Any) -> None:
    """On twenty rows an untrained detector was trusted in four of these twelve trials."""
    untrained = trained(AE, steps=1).fit(world(1000, 1))
    for seed in range(300, 312):
        found = diagnose(untrained, world(20, seed), checks=EXAMINED)
        assert found.verdict != "trust" and found.failure_probability is None
        assert "Only 20 normal rows were looked at; 60 and more can tell." in found.sentence
    few, enough = (diagnose(honest, world(n, 2), checks=EXAMINED) for n in (FEWEST_TO_TRUST - 1, FEWEST_TO_TRUST))
    assert few.failure_probability is None and enough.failure_probability is not None
    assert "Only" in few.sentence and "Only" not in enough.sentence


@pytest.mark.parametrize("cls", [AE, VAE])
def test_a_column_that_is_empty_now_is_not_the_detectors_fault(cls: type[OutlierDetector], world: Any) -> None:
    """Far from 0, which the missing cells were taken for."""
    detector, rows = trained(cls).fit(world(1000, 1) + 1000), world(400, 2) + 1000
    whole = diagnose(detector, rows, checks=EXAMINED)
    rows[:, 2] = np.nan
    empty = diagnose(detector, rows, checks=EXAMINED)
    assert empty.verdict != "distrust" and abs(empty.failure_probability - whole.failure_probability) < 0.1  # type: ignore[operator]


def test_copies_among_the_rows_are_not_the_detectors_fault(honest: Any, world: Any) -> None:
    found = diagnose(honest, np.repeat(world(60, 2), 10, 0), checks=EXAMINED)
    assert found["agreement"].verdict == "not applicable" and found.verdict == "trust"
    assert "300 of 300 are copies of others" in found["agreement"].told
    some = diagnose(honest, np.repeat(world(300, 2), 2, 0), checks=EXAMINED)["agreement"]
    assert some.verdict == "fine" and "are copies of others, and left out" in some.told
    # Where the score is the same for all, too, there is nothing to rank.
    neighbours = Patient(honest, world(100, 5)).neighbours
    patient = types.SimpleNamespace(
        reference=world(50, 3), normal=world(50, 4), scores=np.zeros(50), neighbours=neighbours
    )
    assert checks.agreement(patient).verdict == "not applicable"  # type: ignore[arg-type]


def calibrated(known: Array, scores: Array) -> Any:
    detector = types.SimpleNamespace(calibration_scores_=np.sort(known), false_alarm_rate=0.05)
    return checks.calibration(types.SimpleNamespace(detector=detector, scores_as_given=scores, comparison=None))  # type: ignore[arg-type]


def test_what_is_far_from_copies_is_not_known(honest: Any, world: Any) -> None:
    """Twenty rows, each many times: any row at all is farther from them than they are."""
    patient = Patient(honest, np.repeat(world(20, 2), 20, 0))
    for check in (checks.attack, checks.manifold):
        finding = check(patient)
        assert finding.verdict == "not applicable" and "copies" in finding.told
    assert Patient(honest, world(400, 2)).far(world(5, 3) + 100).all()


def test_one_column_cannot_be_exchanged_or_permuted() -> None:
    """What that makes are other normal rows, of which no detector can tell anything."""
    rows = np.random.default_rng(0).normal(size=(900, 1))
    found = checks.red_team(Patient(trained(AE, steps=200).fit(rows[:500]), rows[500:]))
    assert not {"permuted", "exchanged", "replaced"} & set(found.details["families"]) and found.details["families"]
    assert found.number.value > 0.65  # .55 with those


def test_where_all_scores_are_alike_nothing_is_ranked() -> None:
    patient = Patient(trained(AE, steps=20).fit(np.ones((200, 4))), np.ones((100, 4)))
    told = {check: getattr(checks, check)(patient) for check in ("refits", "stability", "scaling", "attack")}
    assert {finding.verdict for finding in told.values()} == {"not applicable"}
    assert "Fewer than two columns vary." in told["scaling"].told and "alike" in told["refits"].told


def test_few_calibration_rows_fluctuate_themselves() -> None:
    """Of exchangeable rows three tests of .001 call three in a thousand; by a binomial law it was one in six."""
    rng = np.random.default_rng(0)
    graded = [calibrated(rng.normal(size=79), rng.normal(size=1000)).verdict for _ in range(300)]
    assert graded.count("fine") >= 295


def test_rows_whose_bulk_has_moved_are_strangers_though_few_raise_alarms() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=1000)
    scores = np.where(scores > -1, -1 + (scores + 1) / 2, scores)
    found = calibrated(rng.normal(size=500), scores)
    assert found.verdict == "warn" and "stranger than those of calibration" in found.told


@pytest.mark.parametrize(
    ("detector", "neighbours", "components", "verdict", "advice"),
    [
        (0.80, 0.97, 0.70, "fail", "Nearest neighbours see more"),
        (0.90, 0.97, 0.70, "warn", "Nearest neighbours see more"),
        (0.93, 0.97, 0.70, "fine", ""),
        (0.70, 0.72, 0.90, "warn", "principal components see more"),
        (0.70, 0.72, 0.71, "warn", "plain methods see no more"),
        (0.55, 0.57, 0.50, "fail", "plain methods see no more"),
    ],
)
def test_the_red_team_beside_plain_methods(
    detector: float, neighbours: float, components: float, verdict: str, advice: str
) -> None:
    row = {
        name: Estimate(value, value, value)
        for name, value in (("detector", detector), ("kNN", neighbours), ("PCA", components))
    }
    patient = types.SimpleNamespace(
        is_image=False, normal=np.zeros((50, 2)), made=lambda family: np.ones((50, 2)),
        beside_plain=lambda found: dict.fromkeys(found, row),
    )  # fmt: skip
    found = checks.red_team(patient)  # type: ignore[arg-type]
    assert found.verdict == verdict and advice in found.advice and bool(advice) == bool(found.advice)
    # Named are those that it hardly sees and another sees well.
    missed = detector < 0.6 and max(neighbours, components) > 0.7
    assert ("They see what it does not" in found.told) == missed


def test_a_family_that_others_see_is_named() -> None:
    low, high = (Estimate(value, value, value) for value in (0.5, 0.9))
    table = {
        "permuted": {"detector": low, "kNN": high, "PCA": low},
        "jittered": {"detector": high, "kNN": low, "PCA": low},
    }
    patient = types.SimpleNamespace(
        is_image=False, normal=np.zeros((50, 2)), made=lambda family: np.ones((50, 2)), beside_plain=lambda found: table
    )
    assert "They see what it does not: permuted." in checks.red_team(patient).told  # type: ignore[arg-type]


def test_an_attack_goes_downhill_and_ends_on_what_scores_as_normal(world: Any) -> None:
    detector = trained(AE, steps=20).fit(world(400, 1))
    # Of the first column alone: whatever the others hold passes.
    detector._energy_terms = lambda model, rows: {"error": rows[:, 0].square()}
    assert diagnose(detector, world(200, 2), checks=["attack"])["attack"].number.low > 0.3  # type: ignore[union-attr]
    # Without a slope to follow rows stay where they began, most of them abnormal: six in ten are far from all.
    detector._energy_terms = lambda model, rows: {"error": rows.detach().square().sum(1) + 0 * rows.sum(1)}
    assert diagnose(detector, world(200, 2), checks=["attack"])["attack"].number.high < 0.4  # type: ignore[union-attr]


def test_an_attack_takes_steps_in_the_users_units(world: Any) -> None:
    """A table with a boolean that is not standardised has units of its own, as one of numbers alone has."""
    rows = 1000 * world(200, 1)
    frame = pl.DataFrame(rows).with_columns(told=pl.Series(rows[:, 0] > 0))
    for given in (rows, frame):
        units = Patient(AE(**quick(AE), scale=None).fit(given), given).units
        assert units[:6].tolist() == pytest.approx(rows.std(0).tolist(), rel=0.3)
        assert Patient(AE(**quick(AE)).fit(given), given).units.tolist() == 1


def test_the_rows_looked_at_are_spread_over_all(honest: Any, world: Any) -> None:
    rows = world(5000, 2)
    rows[2500:] += 1
    assert diagnose(honest, rows, checks=["drift"])["drift"].verdict == "warn"


def test_a_shift_too_small_to_matter_is_none() -> None:
    known = Moments(np.zeros(1), np.ones(1), np.array([1e5]))
    quantiles = norm.ppf((np.arange(100_000) + 0.5) / 100_000)[:, None]
    small, large = (Comparison(shift(known, quantiles + gap), ["a"], 0.0) for gap in (0.03, 0.07))
    assert small.shift.p_value < 0.001 and not small.certain and "too little to matter" in small.told
    assert large.certain and "farther from the training rows'" in large.told


def test_what_a_notebook_shows_is_one_line(honest: Any, world: Any) -> None:
    found = diagnose(honest, world(80, 2), checks=["drift"])
    assert repr(found) == f"Diagnosis({found.verdict!r}, 1 findings; print it to read them)"
    told = repr(honest.explain(world(3, 3)))
    assert told == "Explanation(3 rows, 6 columns: score, contributions, nearest, …; see top(row))"


def test_what_is_not_asked_of_tables_is_not_left_out(honest: Any, world: Any) -> None:
    found = diagnose(honest, world(80, 2), budget=1e-6)
    assert found["complexity"].verdict == "not applicable" and found["red team"].verdict == "not examined"
    assert "complexity" not in found.sentence


def test_of_a_columns_cells_the_farthest_is_told() -> None:
    known = Moments(np.zeros(3), np.ones(3), np.full(3, 1e6))
    rows = np.array([1.0, -2.0, 0.5]) + np.array([[1.0], [-1.0]]).repeat(50, 0)
    assert Comparison(shift(known, rows), ["a", "a", "b"], 0.0).gaps == {"a": -2.0, "b": 0.5}


def record(**own: Any) -> Any:
    """Return a patient of whose training something is recorded."""
    detector = types.SimpleNamespace(
        training_summary=lambda: {"autoencoder": {"weights_kept_from_step": 5, "rolled_back": 0}},
        fit_report_=own.get("report", {}), history_=own.get("history", []), score_unit="nats",
        training_remarks=lambda: own.get("remarks", []),
    )  # fmt: skip
    return types.SimpleNamespace(detector=detector)


def gap(value: float, low: float, high: float, spread: float = 1.0) -> dict[str, Any]:
    return {"gap": {"value": value, "low": low, "high": high}, "spread": spread}


def test_what_training_recorded_is_graded() -> None:
    assert recorded.training(record()).verdict == "fine"
    remarked = recorded.training(record(remarks=[("Samples are off.", "Train for longer.")]))
    assert (remarked.verdict, remarked.told, remarked.advice) == ("warn", "Samples are off.", "Train for longer.")
    floor = recorded.training(record(report={"gamma": {"at_floor": True}}))
    assert floor.verdict == "warn" and "variance is at its floor" in floor.told
    grown = [{"gradient_norm/latent": 1.0, "gamma": 1.0}, {"gradient_norm/latent": 100.0, "gamma": 0.9}]
    assert "Gradients grew" in recorded.training(record(history=grown)).told
    explained = [grown[0], {"gradient_norm/latent": 100.0, "gamma": 0.01}]
    assert recorded.training(record(history=explained)).verdict == "fine"
    # A gap counts by what it is at least.
    for ends, verdict in (((2.0, 0.6, 3.4), "warn"), ((2.0, 1.6, 2.4), "fail"), ((0.8, -0.1, 1.7), "fine")):
        assert recorded.training(record(report={"score": gap(*ends)})).verdict == verdict
    assert not overfitted(gap(0.8, -0.1, 1.7)) and overfitted(gap(0.8, 0.1, 1.5)) and not overfitted(gap(0.4, 0.1, 0.7))


@pytest.mark.parametrize("score", [gap(0.6, -np.inf, np.inf, 0.0), gap(0.6, 0.5, 0.7, 0.0), gap(0.6, -np.inf, np.inf)])
def test_one_held_out_row_tells_nothing(score: dict[str, Any]) -> None:
    told = answers(record(report={"score": score}).detector)["capacity"]
    assert told == "there are too few held-out rows to say whether the network is too large."


@pytest.mark.parametrize(
    ("own", "kind", "match"),
    [
        (
            {"random_state": -1},
            ValueError,
            "random_state must be an integer of at least 0 and at most 4294967295; got -1",
        ),
        ({"random_state": 2**40}, ValueError, "random_state must be an integer"),
        ({"random_state": None}, ValueError, "random_state must be an integer .*; got None"),
        ({"random_state": True}, ValueError, "random_state must be an integer .*; got True"),
        ({"checks": "red team"}, ValueError, "checks must be a list of names; got 'red team'"),
        ({"budget": True}, ValueError, "budget must be .*; got True"),
    ],
)
def test_arguments_of_the_doctor(
    own: dict[str, Any], kind: type[Exception], match: str, honest: Any, world: Any
) -> None:
    with pytest.raises(kind, match=match):
        diagnose(honest, world(50, 2), **own)


def test_what_else_the_doctor_takes(honest: Any, world: Any) -> None:
    one, two = (diagnose(honest, world(80, 2), checks=["red team"], random_state=seed) for seed in (3, np.int64(3)))
    assert one["red team"] == two["red team"]
    diagnose(honest, world(80, 2), checks=["drift"], report=None)
    with pytest.raises(TypeError, match="detectors of this library; got Pipeline. Of a pipeline give the last step"):
        diagnose(make_pipeline(StandardScaler(), honest), world(50, 2))


def test_candidates_that_hold_nothing_are_refused(honest: Any, world: Any) -> None:
    nothing = np.full((10, 6), np.nan)
    with pytest.raises(ValueError, match=r"candidates\['a'\] has 0 rows that hold anything"):
        rate_negatives(honest, world(100, 2), {"a": nothing})
    some = np.concatenate([nothing, world(20, 3) + 2])
    (rated,) = rate_negatives(honest, world(100, 2), {"a": some}, random_state=np.int64(1))  # type: ignore[arg-type]
    assert rated.rows == len(some) and rated.distance > 1
    for candidates in ([nothing], nothing):
        with pytest.raises(TypeError, match="candidates must map names to sets of rows; got"):
            rate_negatives(honest, world(100, 2), candidates)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not fitted"):
        rate_negatives(AE(), world(100, 2), {"a": world(20, 3)})


def test_candidates_in_order_of_their_kinds_are_rated_like_others(honest: Any, world: Any) -> None:
    aside = np.array([4.0, 0, 0, 0, 0, 0])
    kinds = np.concatenate([world(60, 3) + aside, world(60, 4) - aside])
    mixed = kinds[np.random.default_rng(0).permutation(120)]
    one, two = (rate_negatives(honest, world(200, 2), {"a": rows})[0].separable for rows in (kinds, mixed))
    assert one == pytest.approx(two, abs=0.1)


def test_a_size_is_sought_by_a_bound_alone(world: Any) -> None:
    for part in ("kl", "reconstruction"):
        with pytest.raises(ValueError, match=f"score_by='{part}' is a part of one"):
            suggest_capacity(trained(VAE, score_by=part), world(100, 1))
    own: dict[str, Any] = {"widths": [1.0]}
    found = suggest_capacity(trained(VAE, steps=2), world(100, 1), latent_dims=np.array([1, 2]), **own)  # type: ignore[arg-type]
    assert {candidate.latent_dim for candidate in found.candidates} <= {1, 2}
    for wrong in ([], 3, "12"):
        with pytest.raises(ValueError, match="latent_dims must"):
            suggest_capacity(trained(VAE, steps=2), world(100, 1), latent_dims=wrong, **own)  # type: ignore[arg-type]


def test_models_of_every_kind_are_trusted_where_they_should_be(world: Any) -> None:
    detector = trained(MultiscaleDenoiser).fit(world(1000, 1))
    assert diagnose(detector, world(400, 2), checks=EXAMINED).verdict == "trust"
