"""Methods over data sets: ranks, Friedman's test and Nemenyi's critical difference against worked examples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import friedmanchisquare

from offmanifold.measures.ranks import friedman, indistinguishable, mean_ranks, nemenyi_difference


def test_ranks_by_hand() -> None:
    values = [[0.9, 0.8, 0.7], [0.6, 0.6, 0.9], [0.5, 0.4, 0.3]]
    # 1 2 3 · 2.5 2.5 1 · 1 2 3
    np.testing.assert_allclose(mean_ranks(values), [4.5 / 3, 6.5 / 3, 7 / 3])


def test_friedman_by_hand() -> None:
    values = np.array([[3.0, 2, 1], [3, 2, 1], [3, 1, 2], [2, 3, 1]])
    # Mean ranks 5/4, 2, 11/4: χ² = 12N/(k(k + 1)) · (Σ R² − k(k + 1)²/4) = 4 · (13.125 − 12) = 4.5; p = exp(−χ²/2).
    np.testing.assert_allclose(mean_ranks(values), [1.25, 2.0, 2.75])
    assert friedman(values) == pytest.approx(np.exp(-4.5 / 2))
    assert friedman(values) == friedmanchisquare(*values.T).pvalue
    assert friedman(np.arange(60).reshape(20, 3)) < 1e-8
    assert friedman(np.ones((5, 3))) == 1


@pytest.mark.parametrize(
    ("methods", "quantile"),
    [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (9, 3.102), (10, 3.164)],
)
def test_nemenyi_has_the_published_quantiles(methods: int, quantile: float) -> None:
    """Demšar (2006), Table 5a; one of his quantiles is 1e-3 off."""
    unit = np.sqrt(methods * (methods + 1) / 6)
    assert nemenyi_difference(methods, 1) / unit == pytest.approx(quantile, abs=1.1e-3)


def test_nemenyi_by_hand() -> None:
    """Demšar (2006), Sec. 3.2.2: four methods on 14 data sets, 2.569 · √(4 · 5/(6 · 14)) = 1.25."""
    difference = nemenyi_difference(4, 14)
    assert difference == pytest.approx(1.25, abs=0.005)
    # Within it: all but the first and the last, 3.143 − 1.964 = 1.179 < 1.25 too.
    assert indistinguishable([1.964, 2.0, 2.893, 3.143], difference) == [(0, 3)]
    with pytest.raises(ValueError, match="Two methods"):
        nemenyi_difference(1, 14)


def test_groups_are_as_large_as_can_be() -> None:
    assert indistinguishable([1.0, 2.0, 3.0, 4.0], 1.5) == [(0, 1), (1, 2), (2, 3)]
    assert indistinguishable([1.0, 1.2, 1.4, 4.0], 1.5) == [(0, 2)]
    assert indistinguishable([1.0, 2.0, 2.2, 2.9, 5.0, 5.1], 1.0) == [(0, 1), (1, 3), (4, 5)]
    assert indistinguishable([1.0, 3.0, 5.0], 1.0) == []
    assert indistinguishable([], 1.0) == []
