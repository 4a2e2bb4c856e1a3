"""The study over tables: what its table tells of the records, and what it says where PyOD is missing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offmanifold.studies import tables
from offmanifold.studies.memory import peak_memory

ALL = importlib.util.find_spec


def record(row: str, table: str, seed: int, value: float) -> dict[str, Any]:
    estimate = {"value": value, "low": value, "high": value, "level": 0.95}
    rows = {"train": 10, "normal": 10, "outliers": 10, "without_a_number": 0}
    own = {"auroc": estimate, "aupr": estimate, "processor_seconds": {"fit": 1.5, "score": 0.1}, "rows": rows}
    memory = {"mib": 100 * value} if row == "AE" else {}  # where it cannot be told there is none
    return {"job": {"row": row, "table": table, "seed": seed}, "metrics": own | {"peak_memory": memory}}


def records() -> list[dict[str, Any]]:
    values = {
        "AE": {"a": (0.9, 0.8), "b": (0.5, 0.5), "c": (0.7, 0.7)},
        "VAE": {"a": (0.8, 0.8), "b": (0.6, 0.6), "c": (0.6, 0.6)},
        "kNN": {"a": (0.8, 0.8), "b": (0.9, 0.9), "c": (0.7, 0.7)},
    }
    found = [
        record(row, name, seed, value)
        for row, by in values.items()
        for name, pair in by.items()
        for seed, value in enumerate(pair)
    ]
    # A seed that was begun is not counted.
    return [*found, record("AE", "a", 2, 0.1), record("NAE", "b", 0, 1.0)]


def test_the_table_says_what_the_records_hold() -> None:
    text = tables.table(records())
    (row,) = (line for line in text.splitlines() if line.startswith("| AE |"))
    cells = [cell.strip() for cell in row.split("|")][2:-1]
    assert cells[0].startswith("0.683 ")  # mean of .7 and .667
    assert cells[1].startswith("0.775 ") and cells[2].startswith("0.500 ")  # tables a and c; b
    assert cells[4] == f"{(1 + 3 + 1.5) / 3:.2f}"
    assert cells[5].startswith("-0.117 [")  # mean of (.1 − .4)/3 and (0 − .4)/3
    assert cells[6] == "1, 1, 1" and cells[7] == "-0.400 (b)"
    assert cells[8:] == ["4.5", "200", "90", "2"]
    (other,) = (line for line in text.splitlines() if line.startswith("| VAE |"))
    assert other.split("|")[-3].strip() == "–"
    assert "Not run on all tables: MultiscaleDenoiser, NAE, " in text
    assert "pip install 'offmanifold[bench]'" in text
    assert "| b | 0.500 | 0.600 | 0.900 |" in text


def test_little_is_told_of_few_records(tmp_path: Path) -> None:
    for few in (records()[:1], [record("kNN", "a", 0, 0.9)], [r for r in records() if r["job"]["row"] == "NAE"]):
        assert tables.table(few)
        tables.figure(few, tmp_path / "figure.png")
        assert (tmp_path / "figure.png").exists()


def test_without_pyod_the_rest_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pyod" else ALL(name, *rest))
    assert {job["row"] for job in tables.jobs("smoke", 0)} == {
        "MultiscaleDenoiser", "AE", "VAE", "NAE", "kNN", "MultiscaleDenoiser, 1200 steps",
    }  # fmt: skip


def test_nearest_neighbours_are_pyods() -> None:
    knn = pytest.importorskip("pyod.models.knn", reason="PyOD is not installed (the extra 'bench')")
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=(200, 4)), rng.normal(size=(50, 4)) * 2
    ours = tables._score(tables._make("", 4, 0, {}).fit(train), test)
    np.testing.assert_allclose(ours, -knn.KNN().fit(train).decision_function(test))


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is told by Linux alone")
def test_memory_is_that_of_the_block() -> None:
    found: dict[str, float] = {}
    earlier = np.ones(40 * 2**17)  # 40 MiB
    del earlier
    for size in (30, 60):
        with peak_memory(found):
            rows = np.ones(size * 2**17)
            del rows
        if not found:
            pytest.skip("this process may not reset what is counted")
        assert size - 1 < found["mib"] < size + 15


def test_the_parts_make_up_the_score() -> None:
    from offmanifold import MultiscaleDenoiser

    rows = np.random.default_rng(0).normal(size=(300, 4))
    detector = MultiscaleDenoiser(steps=3, hidden=[16], random_state=0, verbose=False).fit(rows[:200])
    sides = np.split(detector.evidence(rows[200:]), [detector.module_.learned_features], axis=1)
    score = detector.score_samples(rows[200:])
    np.testing.assert_allclose(-tables._both(*sides), score, rtol=1e-5, atol=1e-5)
    learned, stored = (tables.PARTS[f"the {part} alone"](*sides) for part in ("learned denoiser", "stored rows"))
    np.testing.assert_allclose(np.logaddexp(learned, stored) - np.log(2), -score, rtol=1e-5, atol=1e-5)
