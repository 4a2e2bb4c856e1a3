"""One suite for every entry of DETECTORS."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import made, quick
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from offmanifold import AE, VAE, auroc, diagnose, load
from offmanifold.detectors import OutlierDetector
from offmanifold.detectors.base import labelled

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*cannot promise:UserWarning", "ignore:.*has collapsed:UserWarning", "ignore:y holds no label:UserWarning"
)


@pytest.fixture
def fitted(detector_class: type[OutlierDetector], plane: Any) -> OutlierDetector:
    return detector_class(**quick(detector_class)).fit(plane[0])


@pytest.fixture
def fitted_on_images(detector_class: type[OutlierDetector], digits: Any) -> OutlierDetector:
    return detector_class(**quick(detector_class)).fit(digits[0][:300])


def test_scikit_learns_checks(detector_class: type[OutlierDetector]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's tiny data sets: too few calibration rows
        results = check_estimator(
            detector_class(**quick(detector_class)).set_params(random_state=None), on_fail="raise"
        )
    # The array API is tried only under an environment variable that is set before SciPy is imported.
    skipped = {result["check_name"] for result in results if result["status"] != "passed"}
    assert skipped <= {"check_array_api_input"}
    assert len(results) > 40


def test_the_callers_own_modes_change_nothing(
    detector_class: type[OutlierDetector], plane: Any, tmp_path: Path
) -> None:
    """Neither torch's default type, nor autocast, nor a block without gradients."""

    def told(detector: OutlierDetector) -> list[Any]:
        samples = detector.sample(5, random_state=0) if hasattr(detector, "sample") else []
        detector.save(tmp_path / "m.safetensors")
        again = load(tmp_path / "m.safetensors").score_samples(plane[1])
        failures = diagnose(detector, plane[0], checks=["attack", "red team", "manifold"]).to_json()["findings"]
        why = detector.explain(plane[1][:3]).contributions
        return [detector.score_samples(plane[1]), again, detector.calibration_scores_, np.array(samples), failures, why]

    new = detector_class(**quick(detector_class))
    plain = told(clone(new).fit(plane[0]))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            found = told(clone(new).fit(plane[0]))
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(np.array_equal(one, other) for one, other in zip(plain, found, strict=True))


def test_defaults_find_far_outliers_and_an_untrained_model_does_not(
    detector_class: type[OutlierDetector], plane: Any
) -> None:
    normal, _ = plane
    # Off the plane, yet within the range of every column: no model finds them without learning.
    rng = np.random.default_rng(1)
    permuted = np.column_stack([rng.permutation(column) for column in normal.T])
    trained = detector_class(random_state=0, verbose=False).fit(normal[:300])
    # What needs no training (stored rows) is left out.
    hardly = {
        "steps": 1, "learning_rate": 1e-12, "pretraining_steps": 1, "pretraining_rate": 1e-12, "store_rows": False,
    }  # fmt: skip
    known = detector_class().get_params()
    untrained = detector_class(
        random_state=0, verbose=False, **{name: value for name, value in hardly.items() if name in known}
    ).fit(normal[:300])
    trained_auroc = auroc(trained.score_samples(normal[300:]), trained.score_samples(permuted)).value
    untrained_auroc = auroc(untrained.score_samples(normal[300:]), untrained.score_samples(permuted)).value
    assert trained_auroc > 0.85
    assert untrained_auroc < 0.75
    assert trained.score_samples(1e3 + normal[:5]).max() < trained.score_samples(normal).min()


def test_same_seed_same_model_other_seed_another(detector_class: type[OutlierDetector], plane: Any) -> None:
    normal, outliers = plane
    one, two = (detector_class(**quick(detector_class)).fit(normal) for _ in range(2))
    other = clone(one).set_params(random_state=1).fit(normal)
    np.testing.assert_array_equal(one.score_samples(outliers), two.score_samples(outliers))
    for name, tensor in one.module_.state_dict().items():
        assert torch.equal(tensor, two.module_.state_dict()[name]), name
    assert not np.array_equal(one.score_samples(outliers), other.score_samples(outliers))


def test_the_users_global_generators_are_left_alone(detector_class: type[OutlierDetector], plane: Any) -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the legacy global state is what must stay untouched
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    threads = torch.get_num_threads()
    detector = detector_class(**quick(detector_class)).fit(plane[0])
    detector.score_samples(plane[1])
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("kind", ["table", "images"])
def test_a_rows_score_is_its_own(
    kind: str, fitted: OutlierDetector, fitted_on_images: OutlierDetector, plane: Any, digits: Any
) -> None:
    """Not its batch-mates', its position's, its chunk's, an earlier call's."""
    detector = fitted if kind == "table" else fitted_on_images
    rows = np.concatenate(plane) if kind == "table" else digits[0][:200]
    whole = detector.score_samples(rows)
    np.testing.assert_array_equal(whole, detector.score_samples(rows))
    np.testing.assert_array_equal(whole[::-1], detector.score_samples(rows[::-1]))
    np.testing.assert_array_equal(whole[7:8], detector.score_samples(rows[7:8]))
    pieces = [detector.score_samples(rows[start : start + 13]) for start in range(0, len(rows), 13)]
    np.testing.assert_array_equal(whole, np.concatenate(pieces))
    odd_mates = np.concatenate([rows[:1], np.full((70, *rows.shape[1:]), rows.max())])
    np.testing.assert_array_equal(whole[:1], detector.score_samples(odd_mates)[:1])


def test_scores_survive_a_reload_and_another_process(fitted: OutlierDetector, plane: Any, tmp_path: Path) -> None:
    rows = np.concatenate(plane)
    expected = fitted.score_samples(rows)
    fitted.save(tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.score_samples(rows), expected)
    np.testing.assert_array_equal(loaded.predict(rows), fitted.predict(rows))
    np.testing.assert_array_equal(loaded.p_values(rows), fitted.p_values(rows))
    assert loaded.get_params() | {"device": "auto"} == fitted.get_params()
    np.save(tmp_path / "rows.npy", rows)
    script = (
        "import sys, numpy, offmanifold, torch; torch.set_num_threads(int(sys.argv[2])); "
        "d = offmanifold.load(sys.argv[1] + '/model.safetensors'); "
        "numpy.save(sys.argv[1] + '/scores.npy', d.score_samples(numpy.load(sys.argv[1] + '/rows.npy')))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path), str(torch.get_num_threads())], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), expected)


def test_pickle_and_clone(fitted: OutlierDetector, plane: Any) -> None:
    pickled = pickle.dumps(fitted)
    assert b"_load_from_bytes" not in pickled, "a tensor would want the device it was on"
    copy = pickle.loads(pickled)
    np.testing.assert_array_equal(copy.score_samples(plane[1]), fitted.score_samples(plane[1]))
    fresh = clone(fitted)
    assert fresh.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        fresh.score_samples(plane[1])
    with pytest.raises(NotFittedError):
        fresh.save("never.safetensors")


def test_a_fit_that_fails_leaves_no_mixture_of_two(plane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the arguments leaves the detector as it was; what fails later leaves it unfitted."""
    normal, odd = plane
    detector = AE(steps=5, hidden=(8,), random_state=0, verbose=False).fit(normal)
    before = detector.score_samples(odd)
    with pytest.raises(ValueError, match="needs at least 4 rows"):
        detector.fit(normal[:2])
    np.testing.assert_array_equal(detector.score_samples(odd), before)
    with pytest.raises(TypeError, match="takes no negatives"):
        detector.fit(normal * 50 + 7, negatives=odd)
    with pytest.raises(NotFittedError):
        detector.score_samples(odd)
    np.testing.assert_array_equal(detector.fit(normal).score_samples(odd), before)


@pytest.mark.parametrize("seed", [-1, "a", 1.5, np.random.default_rng(0)])
def test_what_cannot_be_a_seed(seed: Any, plane: Any) -> None:
    detector = made(VAE).fit(plane[0])
    for draw in (lambda: detector.sample(3, random_state=seed), lambda: made(VAE, random_state=seed).fit(plane[0])):
        with pytest.raises(ValueError, match="random_state must be an integer from 0 to 4294967295"):
            draw()


def test_sizes_may_be_an_array(plane: Any) -> None:
    assert made(VAE, hidden=np.array([6, 4])).fit(plane[0]).settings_["hidden"] == [6, 4]


def test_works_in_a_pipeline(detector_class: type[OutlierDetector], plane: Any) -> None:
    normal, outliers = plane
    pipeline = make_pipeline(StandardScaler(), detector_class(**quick(detector_class))).fit(normal)
    assert pipeline.predict(outliers).mean() < pipeline.predict(normal).mean()
    if hasattr(pipeline, "transform"):
        codes = pipeline.set_output(transform="pandas").transform(normal[:3])
        assert list(codes.columns) == [f"{detector_class.__name__.lower()}{i}" for i in range(codes.shape[1])]


def test_where_nothing_can_be_saved_no_training_begins(plane: Any, tmp_path: Path) -> None:
    detector = made(AE)
    with pytest.raises(
        ValueError, match="checkpoint='.*gone/run.checkpoint' cannot be written: the folder .* does not"
    ):
        detector.fit(plane[0], checkpoint=tmp_path / "gone" / "run.checkpoint")
    for every in (-1, "x"):
        with pytest.raises(ValueError, match="checkpoint_every must be a finite number, at least 0; got"):
            detector.fit(plane[0], checkpoint=tmp_path / "run.checkpoint", checkpoint_every=every)
    assert not hasattr(detector, "history_")


def test_terms_sum_to_the_score(
    fitted: OutlierDetector, fitted_on_images: OutlierDetector, plane: Any, digits: Any
) -> None:
    for detector, rows in ((fitted, plane[1]), (fitted_on_images, digits[0][:50])):
        terms = detector.score_terms(rows)
        np.testing.assert_array_equal(sum(terms.values()), detector.score_samples(rows))
        assert all(term.shape == (len(rows),) and term.dtype == np.float64 for term in terms.values())


def test_decision_follows_the_p_value(fitted: OutlierDetector, plane: Any) -> None:
    rows = np.concatenate(plane)
    flagged = fitted.predict(rows) == -1
    np.testing.assert_array_equal(flagged, fitted.p_values(rows) <= fitted.false_alarm_rate + 1e-12)
    np.testing.assert_array_equal(flagged, fitted.decision_function(rows) < 0)
    np.testing.assert_array_equal(fitted.decision_function(rows), fitted.score_samples(rows) - fitted.offset_)
    assert 0 < flagged.mean() < 1


def test_far_values_score_finite_and_low(fitted: OutlierDetector, plane: Any) -> None:
    far = np.array([[1e30] * 5, [-1e300] * 5, [1e5] * 5])
    scores = fitted.score_samples(far)
    assert np.isfinite(scores).all()
    assert scores.max() < fitted.score_samples(plane[0]).min()


def test_losses_are_per_row(fitted: OutlierDetector, plane: Any) -> None:
    if fitted.key == "wae":
        pytest.skip("a discrepancy between a batch and the prior belongs to no row")
    rows = torch.from_numpy(plane[0][:8].astype(np.float32))
    labels = fitted._take_labels(None, np.arange(8), 8, dict(fitted.settings_))

    def losses(batch: Any) -> list[Any]:
        # Phases anew each time: what losses remember (replay buffers) is part of them.
        found = []
        for phase in fitted._phases(fitted.module_, fitted.settings_):
            for update in phase.updates:
                given, generator = labelled(batch, labels, np.arange(8)), torch.Generator().manual_seed(0)
                if update.prepare is not None:
                    update.prepare(given, generator)
                values, metrics = update.loss(given, generator)
                assert values.shape == (8,)
                assert all(metric.ndim == 0 and not metric.requires_grad for metric in metrics.values())
                found.append(values)
        return found

    changed = rows.clone()
    changed[-1] += 5
    for values, others in zip(losses(rows), losses(changed), strict=True):
        # Another last row leaves the other rows' losses as they were.
        torch.testing.assert_close(others[:-1], values[:-1])
        assert others[-1] != values[-1]


def test_calibration_rows_take_part_in_nothing_else(detector_class: type[OutlierDetector], plane: Any) -> None:
    """Spoiling the calibration rows changes the calibration and not one weight."""
    normal = plane[0]
    order = np.random.default_rng(int(np.random.RandomState(0).randint(2**31 - 1))).permutation(len(normal))
    clean = detector_class(**quick(detector_class)).fit(normal)
    calibration_rows = order[: clean.rows_["calibration"]]
    spoiled = normal.copy()
    spoiled[calibration_rows] += 100
    other = detector_class(**quick(detector_class)).fit(spoiled)
    for name, tensor in clean.module_.state_dict().items():
        assert torch.equal(tensor, other.module_.state_dict()[name]), name
    np.testing.assert_array_equal(clean._standardiser.scale, other._standardiser.scale)
    assert other.calibration_scores_.max() < clean.calibration_scores_.min()
    np.testing.assert_array_equal(np.sort(clean.score_samples(normal[calibration_rows])), clean.calibration_scores_)


@pytest.mark.parametrize("layout", ["hw", "chw", "hwc"])
def test_reconstructions_come_back_in_the_users_layout(
    detector_class: type[OutlierDetector], digits: Any, layout: str
) -> None:
    if not hasattr(detector_class, "reconstruct"):
        pytest.skip(f"{detector_class.__name__} does not reconstruct")
    images = digits[0][:120]
    rows = {"hw": images, "chw": images[:, None].repeat(3, 1), "hwc": images[..., None].repeat(3, -1)}[layout]
    detector = detector_class(**quick(detector_class)).fit(rows)
    made = detector.reconstruct(rows[:10])
    assert made.shape == rows[:10].shape
    assert made.min() >= 0 and made.max() <= 1
    # What comes in another layout than in training goes back in that.
    came = rows[:10]
    other = came[..., None] if layout == "hw" else np.moveaxis(came, *((1, -1) if layout == "chw" else (-1, 1)))
    again, explanation = detector.reconstruct(other), detector.explain(other)
    assert other.shape == again.shape == explanation.contributions.shape == explanation.nearest.shape
    back = again[..., 0] if layout == "hw" else np.moveaxis(again, *((-1, 1) if layout == "chw" else (1, -1)))
    np.testing.assert_array_equal(back, made)
    eight_bit = (rows[:10] * 255).round().astype(np.uint8)
    np.testing.assert_array_equal(
        detector.score_samples(eight_bit), detector.score_samples(eight_bit / np.float32(255))
    )


def test_tables_are_reconstructed_in_the_users_units(detector_class: type[OutlierDetector], plane: Any) -> None:
    if not hasattr(detector_class, "reconstruct"):
        pytest.skip(f"{detector_class.__name__} does not reconstruct")
    rows = plane[0] * [1, 10, 100, 1e4, 1e-3] + [0, 5, -300, 1e5, 7]
    detector = detector_class(**(quick(detector_class) | {"steps": 600})).fit(rows)
    error = np.abs(detector.reconstruct(rows) - rows).mean(0)
    assert (error < 0.7 * rows.std(0)).all()
    if hasattr(detector, "transform"):
        assert detector.transform(rows).shape == (len(rows), detector.settings_["latent_dim"])


def test_the_input_is_enforced(fitted: OutlierDetector, fitted_on_images: OutlierDetector) -> None:
    with pytest.raises(ValueError, match="X has 4 features, but .* is expecting 5 features"):
        fitted.score_samples(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="trained on a table of 5 columns; got grey images of 8×8"):
        fitted.score_samples(np.zeros((3, 8, 8)))
    with pytest.raises(ValueError, match="trained on grey images of 8×8 pixels; got RGB images of 8×8"):
        fitted_on_images.score_samples(np.zeros((3, 8, 8, 3)))
    with pytest.raises(ValueError, match="trained on grey images of 8×8 pixels; got grey images of 9×8"):
        fitted_on_images.score_samples(np.zeros((3, 9, 8)))


def test_constant_and_repeated_data_stay_finite(detector_class: type[OutlierDetector]) -> None:
    rows = np.ones((60, 3))
    with pytest.warns(UserWarning, match="All rows of training are alike"):
        detector = detector_class(**quick(detector_class)).fit(rows)
    assert np.isfinite(detector.score_samples(rows)).all()
    assert detector.predict(np.array([[1.0, 1.0, 900.0]])).tolist() == [-1]
    wide = np.c_[np.random.default_rng(0).normal(size=(60, 2)), np.full(60, 7.0)]
    assert np.isfinite(detector_class(**quick(detector_class)).fit(wide).score_samples(wide)).all()


def test_few_rows_warn_with_the_rate_that_can_be_promised(detector_class: type[OutlierDetector]) -> None:
    rows = np.random.default_rng(0).normal(size=(20, 3))
    with pytest.warns(UserWarning, match=r"4 calibration rows cannot promise false_alarm_rate=0.05.* is 0\.2"):
        detector = detector_class(**quick(detector_class)).fit(rows)
    assert (detector.predict(rows * 100) == 1).all()
    with pytest.raises(ValueError, match="n_samples = 3: .* needs at least 4 rows"):
        detector_class(**quick(detector_class)).fit(rows[:3])


def test_columns_in_units_that_no_default_is_meant_for_are_told_of(
    detector_class: type[OutlierDetector], plane: Any
) -> None:
    with pytest.warns(UserWarning, match="scale=None leaves columns whose standard deviation is 0.0"):
        detector_class(**quick(detector_class) | {"scale": None}).fit(plane[0] * 0.01)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="scale=None")
        detector_class(**quick(detector_class) | {"scale": None}).fit(plane[0])
        detector_class(**quick(detector_class)).fit(plane[0] * 0.01)
        warnings.filterwarnings("error", category=RuntimeWarning)
        if detector_class.gaps == "learned":  # a column that is nowhere there has no deviation
            empty = np.where(np.arange(5) == 2, np.nan, plane[0])
            detector_class(**quick(detector_class) | {"scale": None}).fit(empty)
            some = np.where(np.random.default_rng(0).random(plane[0].shape) < 0.1, np.nan, plane[0])
            detector_class(**quick(detector_class) | {"scale": None}).fit(some)  # zero is where the data are
    if detector_class.gaps == "learned":
        with pytest.warns(UserWarning, match="a missing cell is shown to the network as 0, which lies up to"):
            detector_class(**quick(detector_class) | {"scale": None}).fit(some + 20)


def test_copies_of_rows_are_told_of(detector_class: type[OutlierDetector], plane: Any) -> None:
    """A model knows a calibration row whose copy it learned from: what it promises is of rows that it does not know."""
    rows = plane[0]
    with pytest.warns(UserWarning, match="% of the calibration rows are copies of rows that were learned from"):
        detector_class(**quick(detector_class)).fit(np.repeat(rows, 2, axis=0))
    rng = np.random.default_rng(0)
    by_chance = rng.integers(0, 3, size=(600, 5)).astype(float)  # few values: rows are alike, as new ones will be
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*copies of rows")
        detector_class(**quick(detector_class)).fit(by_chance)
        detector_class(**quick(detector_class)).fit(rows)


def test_what_is_set_after_a_fit_is_what_is_saved(
    detector_class: type[OutlierDetector], plane: Any, tmp_path: Path
) -> None:
    rows = np.concatenate(plane)
    detector = detector_class(**quick(detector_class)).fit(plane[0])
    before = detector.predict(rows)
    scores = detector.score_samples(rows)
    detector.set_params(false_alarm_rate=0.3, precision="bfloat16")
    changed = detector.predict(rows)
    np.testing.assert_array_equal(changed == -1, detector.p_values(rows) <= 0.3 + 1e-9)
    assert (changed == -1).sum() > (before == -1).sum()
    # Scores stay comparable to those of the calibration rows.
    np.testing.assert_array_equal(detector.score_samples(rows), scores)
    detector.save(tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(again.predict(rows), changed)
    np.testing.assert_array_equal(again.score_samples(rows), scores)
    # What could not be loaded is not saved.
    with pytest.raises(ValueError, match="false_alarm_rate must be .* below 1; got 7"):
        detector.set_params(false_alarm_rate=7.0).save(tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


def test_numpy_numbers_in_a_list_can_be_saved(plane: Any, tmp_path: Path) -> None:
    AE(**quick(AE) | {"hidden": list(np.array([8, 8]))}).fit(plane[0]).save(tmp_path / "m.safetensors")
    assert load(tmp_path / "m.safetensors").settings_["hidden"] == [8, 8]


def test_a_refit_forgets_what_columns_there_were(plane: Any, digits: Any) -> None:
    detector = AE(**quick(AE)).fit(pl.DataFrame(plane[0], schema=list("abcde")))
    assert list(detector.feature_names_in_) == list("abcde") and detector.n_features_in_ == 5
    detector.fit(plane[0][:, :3])
    assert not hasattr(detector, "feature_names_in_") and detector.n_features_in_ == 3
    detector.fit(digits[0][:100])
    assert not hasattr(detector, "n_features_in_")
