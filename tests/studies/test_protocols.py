"""What studies train on and test on is what their tables say: with images that know where they are from."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from offmanifold.data import benchmarks
from offmanifold.measures import Estimate
from offmanifold.studies import (
    fashion_vs_mnist,
    learned_gamma,
    mnist_holdout,
    mnist_ood,
    negative_sampling,
    negatives_grey,
    negatives_sources,
    tables,
)
from offmanifold.studies.core import baseline_scores

Array = np.ndarray
SETS = {"mnist": 1, "fashion_mnist": 2, "kmnist_test": 3, "emnist_letters": 4, "omniglot28": 5, "lfw32": 6}
TRAIN, TEST = 0, 1


def marked(name: str, split: int, count: int) -> tuple[Array, Array]:
    """Return images whose first pixels tell set, split and label, also at half the size, and the labels."""
    labels = np.arange(count) % 10
    images = np.zeros((count, 28, 28), np.uint8)
    for place, value in enumerate((SETS[name], split, labels)):
        images[:, :2, 2 * place : 2 * place + 2] = np.broadcast_to(value, count)[:, None, None]
    return images, labels


def of(images: Array) -> tuple[set[int], set[int], set[int]]:
    """Return the sets, splits and labels of images, of the full size or half of it."""
    step = images.shape[1] // 14
    return tuple(set(images[:, 0, step * place].tolist()) for place in range(3))  # type: ignore[return-value]


class Recorder:
    """A detector that keeps what it is given; images score their label."""

    made: list[Recorder]

    def __init__(self, **parameters: Any) -> None:
        self.parameters, self.gamma_, self.spec_ = parameters, 0.25, types.SimpleNamespace(dimensions=4)
        self.history_ = [{"step": 1, "gradient_norm/latent": 1.0}]
        type(self).made.append(self)

    def fit(self, X: Array, negatives: Array | None = None) -> Recorder:
        self.trained, self.negatives, self.scored = X, negatives, list[Array]()
        return self

    def score_samples(self, X: Array) -> Array:
        self.scored.append(X)
        return X[:, 0, X.shape[1] // 14 * 2].astype(float)

    def scores(self, X: Array) -> dict[str, Array]:
        return {"elbo": self.score_samples(X), "kl": self.score_samples(X)}

    def score_terms(self, X: Array) -> dict[str, Array]:
        # MNIST's KL is the higher, and its reconstruction by more the better.
        mnist = (X[:, 0, 0] == SETS["mnist"]).astype(float)
        self.scored.append(X)
        return {"reconstruction": 3 * mnist, "kl": -mnist}

    def training_summary(self) -> dict[str, Any]:
        return {"phase": {"steps": 1, "rolled_back": 0}}


@pytest.fixture(autouse=True)
def sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """All sets there are, and nothing recorded yet."""

    def images(name: str) -> benchmarks.Images:
        (train, train_labels), (test, test_labels) = (marked(name, split, 60) for split in (TRAIN, TEST))
        return benchmarks.Images(train, test, train_labels, test_labels)

    monkeypatch.setattr(benchmarks, "images", images)
    Recorder.made = []


@pytest.mark.parametrize("digit", [1, 7])
def test_a_held_out_digit_is_held_out(digit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mnist_holdout.DETECTORS, "ae", Recorder)
    job = {"row": "AE", "detector": "ae", "digit": digit, "seed": 5, "train_images": 40, "test_images": 50,
           "parameters": {"steps": 3}}  # fmt: skip
    metrics = mnist_holdout.run(job)
    (detector,) = Recorder.made
    others = set(range(10)) - {digit}
    assert of(detector.trained) == ({1}, {TRAIN}, others) and len(detector.trained) == 40
    normal, odd = detector.scored
    assert of(normal) == ({1}, {TEST}, others) and of(odd) == ({1}, {TEST}, {digit})
    assert detector.parameters["random_state"] == 5 and detector.parameters["steps"] == 3
    # Images score their label, and low is abnormal.
    assert metrics["auroc"]["value"] == pytest.approx((normal[:, 0, 4] > digit).mean())
    given: list[Array] = []
    monkeypatch.setattr(
        mnist_holdout, "baseline_scores", lambda row, *rows: (given.extend(rows), (np.zeros(4), np.ones(4)))[1]
    )
    mnist_holdout.run(job | {"row": "kNN", "detector": None})
    assert [of(rows) for rows in given] == [
        ({1}, {TRAIN}, others), ({1}, {TEST}, others), ({1}, {TEST}, {digit})
    ]  # fmt: skip


def test_a_mean_over_digits_is_of_seeds_that_have_them_all() -> None:
    values = {(0, 1): 0.2, (0, 4): 0.4, (1, 1): 0.9}
    records = [
        {"job": {"row": "AE", "digit": digit, "seed": seed}, "metrics": {"auroc": {"value": value}}}
        for (seed, digit), value in values.items()
    ]
    assert mnist_holdout._means(records, "AE", [1, 4]) == pytest.approx([0.3])


def test_other_images_than_digits_are_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mnist_holdout.DETECTORS, "ae", Recorder)
    job = next(job for job in mnist_ood.STUDY.jobs("smoke", 0) if job["row"] == "AE")
    metrics = mnist_ood.STUDY.run(job | {"train_images": 30, "test_images": 20})
    (detector,) = Recorder.made
    assert of(detector.trained) == ({1}, {TRAIN}, set(range(10)))
    scored = np.concatenate(detector.scored)
    assert of(scored[:20]) == ({1}, {TEST}, set(range(10))) and len(scored) == 20 * (1 + len(metrics["auroc"]))


@pytest.mark.parametrize("outliers", ["MNIST", "Letters"])
def test_auxiliary_negatives_are_of_a_third_set(outliers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VAE", "NegativeVAE"):
        monkeypatch.setattr(negative_sampling, name, Recorder)
    names = {name: SETS[file] for name, file in negatives_grey.SETS.items()}
    (inlier,) = set(names) - {"MNIST", "Letters"}
    (third,) = {"MNIST", "Letters"} - {outliers}
    job = {"inlier": inlier, "outliers": [outliers], "row": "auxiliary", "seed": 1, "side": 14, "train_images": 40,
           "test_images": 30, "parameters": {}}  # fmt: skip
    negatives_grey.run(job)
    (detector,) = Recorder.made
    assert of(detector.trained)[:2] == ({names[inlier]}, {TRAIN})
    assert of(detector.negatives)[:2] == ({names[third]}, {TRAIN})  # type: ignore[arg-type]
    assert [of(rows)[:2] for rows in detector.scored[::2]] == [({names[inlier]}, {TEST}), ({names[outliers]}, {TEST})]


def test_gamma_is_fixed_at_what_was_learned_and_tested_on_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[Array] = []

    def measure(result: Any) -> Callable[..., Any]:
        return lambda detector, rows, **more: (measured.append(rows), result)[1]

    monkeypatch.setattr(learned_gamma, "VAE", Recorder)
    for name, result in (
        ("reconstruction_error", Estimate(1, 1, 1)), ("aggregate_mmd", Estimate(2, 2, 2)), ("active_latents", []),
    ):  # fmt: skip
        monkeypatch.setattr(learned_gamma, name, measure(result))
    monkeypatch.setattr(
        learned_gamma, "split", lambda job: (marked("mnist", TRAIN, 20)[0], marked("mnist", TEST, 10)[0])
    )
    learned_gamma.run({"seed": 0, "parameters": {"steps": 1}})
    gammas = dict(zip(learned_gamma.ROWS, [one.parameters["gamma"] for one in Recorder.made], strict=True))
    assert gammas["learned"] == "learned" and gammas["fixed"] == 0.25
    assert all(of(one.trained)[1] == {TRAIN} for one in Recorder.made)
    assert measured and all(of(rows)[1] == {TEST} for rows in measured)


def test_a_high_kl_and_many_bits_are_abnormal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_vs_mnist, "VAE", Recorder)
    metrics = fashion_vs_mnist.run({"seed": 0, "train_images": 30, "test_images": 20, "parameters": {}})
    (detector,) = Recorder.made
    assert of(detector.trained)[:2] == ({2}, {TRAIN})
    assert [of(rows)[:2] for rows in detector.scored] == [({2}, {TEST}), ({1}, {TEST})]
    # Of what Recorder says MNIST has the higher KL, and the fewer bits.
    assert metrics["kl"]["value"] == 1.0 and metrics["bpd"]["value"] == 0.0
    assert metrics["bits_per_dim_unit_mnist"] == pytest.approx(-2 / (4 * np.log(2)))


def test_a_gain_is_what_negatives_add() -> None:
    def record(row: str, value: float, **more: Any) -> dict[str, Any]:
        auroc = {"MNIST": {"bpd": {"value": value}}}
        return {"job": {"row": row, "seed": 0}, "metrics": {"auroc": auroc, **more}}

    rating = {row: {"headroom": 0.5} for row in negatives_sources.CANDIDATES}
    found = negatives_sources._gains([record("none", 0.4, rating=rating), record("KMNIST", 0.9)])
    assert found == [("KMNIST", [0.5], [pytest.approx(0.5)])]


def test_plain_methods_are_what_they_are_called() -> None:
    rng = np.random.default_rng(0)
    train, normal, odd = (rng.integers(0, 256, (count, 7, 7), dtype=np.uint8) for count in (80, 5, 4))
    flat = [images.reshape(len(images), -1) / 255 for images in (train, normal, odd)]
    known = NearestNeighbors(n_neighbors=5).fit(flat[0])
    for found, rows in zip(baseline_scores("kNN", train, normal, odd), flat[1:], strict=True):
        np.testing.assert_allclose(found, -known.kneighbors(rows)[0][:, -1], rtol=1e-6)
    components = PCA(32).fit(flat[0])
    for found, rows in zip(baseline_scores("PCA", train, normal, odd), flat[1:], strict=True):
        left = rows - components.inverse_transform(components.transform(rows))
        np.testing.assert_allclose(found, -np.square(left).mean(1), rtol=1e-4)


def test_tables_are_standardised_by_their_training_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Array] = []

    class Model:
        def fit(self, X: Array) -> Model:
            given.append(X)
            return self

        def decision_function(self, X: Array) -> Array:
            given.append(X)
            return np.abs(X).sum(1)  # type: ignore[no-any-return]

    rng = np.random.default_rng(0)
    table = benchmarks.Table("t", rng.normal(5, 2, (50, 3)), rng.normal(5, 2, (30, 3)), rng.normal(50, 2, (10, 3)))
    monkeypatch.setattr(tables, "_load", lambda name, seed: table)
    monkeypatch.setattr(tables, "_make", lambda source, columns, seed, parameters: Model())
    metrics = tables.run({"row": tables.REFERENCE, "table": "t", "seed": 0, "parameters": {}})
    train, test = given
    np.testing.assert_allclose([train.mean(0), train.std(0)], [[0] * 3, [1] * 3], atol=1e-12)
    assert len(test) == 40 and (test[30:].mean(0) > 10).all() and metrics["auroc"]["value"] == 1.0
