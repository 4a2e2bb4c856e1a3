"""The smooth nearest-neighbour test against brute force over labels and against the hard test."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from offmanifold.measures import smooth_knn_test
from offmanifold.measures.two_sample import MOST_NEIGHBOURS, permutation_moments, subset_marginals


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def between(graph: np.ndarray, first: np.ndarray) -> float:
    return float(graph[np.ix_(first, ~first)].sum() + graph[np.ix_(~first, first)].sum())


@pytest.mark.parametrize("sizes", [(2, 2), (3, 3), (4, 3), (2, 6)])
def test_permutation_moments_are_those_of_all_labellings(rng: np.random.Generator, sizes: tuple[int, int]) -> None:
    n = sum(sizes)
    graph = rng.exponential(size=(n, n))
    np.fill_diagonal(graph, 0)
    values = []
    for chosen in itertools.combinations(range(n), sizes[0]):
        first = np.isin(np.arange(n), chosen)
        values.append(between(graph, first))
    assert permutation_moments(graph, sizes[0]) == pytest.approx((np.mean(values), np.var(values)), rel=1e-10)


def test_permutation_moments_of_a_larger_graph(rng: np.random.Generator) -> None:
    n, n_first, draws = 40, 15, 20_000
    graph = rng.exponential(size=(n, n)) ** 3
    np.fill_diagonal(graph, 0)
    first = np.arange(n) < n_first
    values = np.array([between(graph, rng.permutation(first)) for _ in range(draws)])
    mean, variance = permutation_moments(graph, n_first)
    assert abs(values.mean() - mean) < 4 * (variance / draws) ** 0.5
    assert values.var() == pytest.approx(variance, rel=0.06)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("spread", [0.1, 3.0, 300.0])
def test_marginals_are_sums_over_subsets(rng: np.random.Generator, k: int, spread: float) -> None:
    log_weights = spread * rng.normal(size=(4, 7))
    expected = np.zeros_like(log_weights)
    for i, row in enumerate(log_weights):
        subsets = [list(subset) for subset in itertools.combinations(range(7), k)]
        log_p = np.array([row[subset].sum() for subset in subsets])
        p = np.exp(log_p - np.logaddexp.reduce(log_p))
        for subset, share in zip(subsets, p, strict=True):
            expected[i, subset] += share
    found = subset_marginals(log_weights, k)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(found.sum(1), k)


def test_the_most_neighbours_of_many_neither_overflow_nor_vanish(rng: np.random.Generator) -> None:
    log_weights = 1000 * rng.normal(size=(3, 5000))
    log_weights[:, 4000:] = log_weights[:, :1]
    found = subset_marginals(log_weights, MOST_NEIGHBOURS)
    np.testing.assert_allclose(found.sum(1), MOST_NEIGHBOURS)
    assert found.min() >= 0 and found.max() <= 1 + 1e-12


@pytest.mark.parametrize("k", [1, 3])
def test_a_low_temperature_is_the_hard_test(rng: np.random.Generator, k: int) -> None:
    x, y = rng.normal(size=(12, 2)), rng.normal(0.5, 1, size=(15, 2))
    pooled = np.concatenate([x, y])
    distances = cdist(pooled, pooled)
    np.fill_diagonal(distances, np.inf)
    graph = np.zeros((27, 27))
    np.put_along_axis(graph, np.argsort(distances, axis=1)[:, :k], 1.0, axis=1)
    first = np.arange(27) < 12
    values = np.array([between(graph, rng.permutation(first)) for _ in range(20_000)])
    expected = (values.mean() - between(graph, first)) / values.std()
    assert smooth_knn_test(x, y, k=k, temperatures=[1e-6]).statistic == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize("k", [1, 3])
def test_under_equal_distributions_it_is_about_standard_normal(k: int) -> None:
    results = []
    for seed in range(400):
        x, y = np.random.default_rng(seed).normal(size=(2, 30, 3))
        results.append(smooth_knn_test(x, y[:25], k=k))
    values = np.array([result.statistic for result in results])
    assert abs(values.mean()) < 4 / 400**0.5
    assert values.std() == pytest.approx(1, abs=0.12)
    # 20 expected; the law is a little skewed to the right.
    assert 8 <= sum(result.p_value < 0.05 for result in results) <= 36


@pytest.mark.parametrize("k", [1, 3])
def test_power_grows_with_the_shift(rng: np.random.Generator, k: int) -> None:
    x, y = rng.normal(size=(2, 200, 2))
    values = [smooth_knn_test(x, y + shift, k=k).statistic for shift in (0.0, 0.5, 1.0, 2.0)]
    assert values == sorted(values) and abs(values[0]) < 2.4 < values[1]
    assert smooth_knn_test(x, y + 0.5, k=k).p_value < 0.01
    # A change of scale is found as well as one of place, from either side.
    assert smooth_knn_test(x, 0.5 * y, k=k).statistic > 4 and smooth_knn_test(0.5 * y, x, k=k).statistic > 4


def test_order_unit_and_sides_do_not_matter(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(20, 3)), rng.normal(0.3, 1, size=(30, 3))
    found = smooth_knn_test(x, y, k=2)
    for other in (
        smooth_knn_test(rng.permutation(x), rng.permutation(y), k=2),
        smooth_knn_test(y, x, k=2),
        smooth_knn_test(100 * x + 7, 100 * y + 7, k=2),
    ):
        assert (other.statistic, *other.each) == pytest.approx((found.statistic, *found.each))
    assert np.array(smooth_knn_test(100 * x, 100 * y, k=2).temperatures) == pytest.approx(
        100 * np.array(found.temperatures)
    )
    with torch.no_grad():
        assert smooth_knn_test(x, y, k=2) == found
    (single,) = smooth_knn_test(x, y, temperatures=[0.3]).each
    assert smooth_knn_test(x, y, temperatures=[0.3]).statistic == pytest.approx(single)
    assert found.each[0] != pytest.approx(found.each[2])


def test_repeated_rows_and_equal_distances(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(2, 20, 2))
    found = smooth_knn_test(np.repeat(x, 2, axis=0), np.repeat(y, 2, axis=0))
    assert found.temperatures == smooth_knn_test(x, y).temperatures
    assert found.statistic > 3  # each row's copy is in its own sample
    corners = np.eye(4)
    assert smooth_knn_test(corners[:2], corners[2:]).statistic == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": np.zeros(5)}, r"x must be of shape \(n, d\) with at least two rows; got \(5,\)"),
        ({"y": np.zeros((1, 2))}, r"y must be .* got \(1, 2\)"),
        ({"y": np.full((3, 2), np.nan)}, "y must be finite"),
        ({"y": np.zeros((3, 3))}, "as many columns; got 2 and 3"),
        ({"k": 5}, "k must be at most 4, with 6 rows in all; got 5"),
        ({"x": np.arange(24.0).reshape(12, 2), "k": 11}, "k must be at most 10, with 15 rows"),
        ({"k": 0}, "k must be an integer of at least 1"),
        ({"temperatures": [0.1, 0.0]}, r"temperatures\[1\] must be a finite number, at least 1e-100"),
        ({"temperatures": 0.3}, "temperatures must hold at least one number; got 0.3"),
        ({"temperatures": []}, "temperatures must hold at least one"),
        ({"x": np.zeros((3, 2)), "y": np.zeros((3, 2))}, "no row has 1 others that differ from it"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    given = {"x": np.arange(6.0).reshape(3, 2), "y": np.arange(6.0).reshape(3, 2) ** 2} | arguments
    with pytest.raises(ValueError, match=message):
        smooth_knn_test(**given)


def test_temperatures_are_shares_of_the_distance_to_the_kth_neighbour(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(40, 2)), rng.normal(size=(30, 2))
    pooled = np.concatenate([x, y])
    for k in (1, 3):
        third = np.median(np.sort(cdist(pooled, pooled))[:, k])  # the first is a row itself
        assert smooth_knn_test(x, y, k=k, temperatures=[0.5]).temperatures == pytest.approx([0.5 * third])


@pytest.mark.parametrize("unit", [1e160, 1e-200])
def test_units_do_not_matter_even_where_squares_do_not_fit(rng: np.random.Generator, unit: float) -> None:
    x, y = rng.normal(size=(40, 2)), rng.normal(size=(30, 2)) + 1
    plain, scaled = smooth_knn_test(x, y), smooth_knn_test(x * unit, y * unit)
    assert scaled.statistic == pytest.approx(plain.statistic) and plain.statistic > 1
    assert np.array(scaled.temperatures) / unit == pytest.approx(np.array(plain.temperatures))
