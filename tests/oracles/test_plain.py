"""Nearest neighbours and principal components against distances and decompositions written out."""

from __future__ import annotations

import numpy as np
import pytest

from offmanifold.measures.plain import Components, Neighbours


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(60, 2, 3)) * [1, 10, 0.1] + 5, rng.normal(size=(20, 2, 3)) + 5


@pytest.mark.parametrize("standardise", [False, True])
def test_neighbours_by_all_distances(rows: tuple[np.ndarray, np.ndarray], standardise: bool) -> None:
    model = Neighbours(3, standardise=standardise).fit(rows[0])
    train, new = (part.reshape(len(part), -1) for part in rows)
    if standardise:
        train, new = ((part - train.mean(0)) / train.std(0) for part in (train, new))
    distances = np.linalg.norm(new[:, None] - train, axis=2)
    np.testing.assert_allclose(model.score_samples(rows[1]), -np.sort(distances)[:, 2], rtol=1e-9)
    nearest, places = model.nearest(rows[1])
    np.testing.assert_array_equal(places, distances.argmin(1))
    np.testing.assert_allclose(nearest, distances.min(1), rtol=1e-9)


def test_of_fewer_rows_than_neighbours_the_farthest_counts() -> None:
    assert Neighbours().fit([[0.0], [2.0]]).score_samples([[5.0]]) == [-5]


@pytest.mark.parametrize(("kept", "most"), [(2, 2), (5, 5), (0.95, None)])
def test_components_by_singular_values(rows: tuple[np.ndarray, np.ndarray], kept: float, most: int | None) -> None:
    train, new = (part.reshape(len(part), -1) for part in rows)
    _, singular, directions = np.linalg.svd(train - train.mean(0), full_matrices=False)
    if most is None:
        shares = np.cumsum(singular**2) / (singular**2).sum()
        most = int((shares < kept).sum()) + 1
        assert most == 2  # the two columns ten times as wide
    left = (new - train.mean(0)) @ directions[most:].T
    found = Components(kept).fit(rows[0]).score_samples(rows[1])
    np.testing.assert_allclose(found, -(left**2).sum(1), rtol=1e-8)


def test_both_ways_to_find_so_many_components_are_one() -> None:
    rng = np.random.default_rng(0)
    train, new = rng.normal(size=(1000, 6)) * [3, 2, 1, 1, 0.5, 0.1], rng.normal(size=(50, 6))
    error = Components(3).fit(train).score_samples(new)
    _, _, directions = np.linalg.svd(train - train.mean(0), full_matrices=False)
    np.testing.assert_allclose(error, -(((new - train.mean(0)) @ directions[3:].T) ** 2).sum(1), rtol=1e-8)


@pytest.mark.parametrize("kept", [2, 0.95])
@pytest.mark.parametrize("value", [np.zeros(4), np.arange(4.0)], ids=["zeros", "equal rows"])
def test_equal_rows_leave_what_is_off_them(kept: float, value: np.ndarray) -> None:
    model = Components(kept).fit(np.tile(value, (30, 1)))
    assert model.score_samples([value]) == pytest.approx(0)
    assert model.score_samples([value + 1])[0] < 0
