"""The study of explanations: SHAP where it is installed, and a table that says so where it is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from offmanifold.studies.explanations import ROWS, shapley, table


def test_a_linear_score_is_explained_exactly() -> None:
    pytest.importorskip("shap", reason="SHAP comes with the extra [bench]")
    rng = np.random.default_rng(0)
    weights, rows, background = rng.normal(size=6), rng.normal(size=(5, 6)), rng.normal(size=(10, 6))
    linear: Any = SimpleNamespace(score_samples=lambda X: X @ weights)
    found = shapley(linear, background, 0, rows)
    np.testing.assert_allclose(found, weights * (rows - background.mean(0)), atol=1e-12)


@pytest.mark.parametrize("ways", [ROWS, ("z-score", "AE", "VAE")])
def test_the_table_has_what_was_tried(ways: tuple[str, ...]) -> None:
    rates = {"chance": 0.1} | dict.fromkeys(ways, 0.5)
    metrics = {
        "hits": {"wine": dict.fromkeys(("exchanged", "shifted"), rates)},
        "milliseconds": dict.fromkeys(ways, 2.0),
    }
    lines = table([{"metrics": metrics}]).splitlines()
    assert f"| wrong cell | chance | {' | '.join(ways)} | seeds |" in lines
    assert f"| shifted | 0.100 | {' | '.join(['0.500'] * len(ways))} | 1 |" in lines
    assert ("[bench]" in lines[-1]) == (ways != ROWS)
