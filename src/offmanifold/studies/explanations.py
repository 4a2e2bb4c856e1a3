"""Do explanations name the column that is wrong? Anomalies planted in known columns of normal rows."""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.preprocessing import StandardScaler

from offmanifold.data import benchmarks
from offmanifold.detectors import AE, VAE, OutlierDetector
from offmanifold.report.figures import dot_rows
from offmanifold.studies.core import Job, Record, Study, over_seeds, shown

Array = npt.NDArray[Any]
# Scale → rows to learn from, rows to plant in, and how many of these SHAP, a hundred times as slow, is asked about;
# smoke scale has the tables of scikit-learn alone.
SIZES = {"smoke": (100, 20, 5), "laptop": (2000, 200, 25), "paper": (10_000, 1000, 100)}
DETECTORS = {"AE": AE, "VAE": VAE}
KINDS = ("exchanged", "shifted")
ROWS = ("z-score", "AE", "VAE", "AE, SHAP's rows", "AE by SHAP", "VAE, SHAP's rows", "VAE by SHAP")
# SHAP: training rows that stand for a column left out, and evaluations a row, its own default.
BACKGROUND, EVALUATIONS = 10, 500


def _sets(scale: str, seed: int) -> dict[str, tuple[Array, Array]]:
    """Return training rows and other normal rows of each table of four columns or more."""
    found = {}
    for name, load in (("breast cancer", load_breast_cancer), ("wine", load_wine)):
        rows, labels = load(return_X_y=True)
        rows = np.random.default_rng(seed).permutation(rows[labels == 1])
        found[name] = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    if scale != "smoke":
        found |= {table.name: (table.train, table.normal) for table in benchmarks.tables(seed)}
    return {name: parts for name, parts in found.items() if parts[0].shape[1] >= 4}


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a seed: all tables and detectors."""
    shap = importlib.util.find_spec("shap") is not None
    return [{"name": f"planted-seed{seed}", "scale": scale, "seed": seed, "shap": shap}]


def _planted(kind: str, rows: Array, scaler: StandardScaler, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return rows with one wrong cell each, and its column: another row's cell, or three deviations added."""
    varies = np.flatnonzero(scaler.var_ > 0)
    columns = varies[rng.integers(len(varies), size=len(rows))]
    wrong, here = rows.copy(), np.arange(len(rows))
    if kind == "exchanged":
        wrong[here, columns] = rows[rng.permutation(len(rows)), columns]
    else:
        wrong[here, columns] += 3 * scaler.scale_[columns] * rng.choice([-1, 1], size=len(rows))
    return wrong, columns


def shapley(detector: OutlierDetector, background: Array, seed: int, rows: Array) -> Array:
    """Return what SHAP says that each cell adds to a score ``(n, columns)``, from nothing but scores.

    A column that is left out is a background row's, as if columns were independent.
    """
    shap: Any = importlib.import_module("shap")
    masker = shap.maskers.Independent(background, max_samples=len(background))
    explainer = shap.PermutationExplainer(detector.score_samples, masker, seed=seed)
    evaluations = max(EVALUATIONS, 2 * rows.shape[1] + 1)  # a permutation forth and back at least
    found: Array = explainer(rows, max_evals=evaluations, batch_size=evaluations, silent=True).values
    return found


def _explained(detector: OutlierDetector, rows: Array) -> Array:
    return detector.explain(rows).contributions


def _near_mean(scaler: StandardScaler, rows: Array) -> Array:
    distances: Array = np.abs(scaler.transform(rows))
    return -distances


def _ways(train: Array, scaler: StandardScaler, job: Job) -> dict[str, tuple[int, Callable[[Array], Array]]]:
    """Return by name how many rows are explained, and what gives each cell ``(n, columns)`` its number.

    The lowest is of the cell that is called wrong.
    """
    quick = {"steps": 3} if job["scale"] == "smoke" else {}
    _, count, few = SIZES[job["scale"]]
    background = np.random.default_rng(job["seed"]).permutation(train)[:BACKGROUND].astype(np.float64)
    ways: dict[str, tuple[int, Callable[[Array], Array]]] = {"z-score": (count, partial(_near_mean, scaler))}
    for row, cls in DETECTORS.items():
        detector = cls(random_state=job["seed"], verbose=False, **quick).fit(train)
        ways[row] = count, partial(_explained, detector)
        if job["shap"]:
            ways[f"{row}, SHAP's rows"] = few, partial(_explained, detector)
            ways[f"{row} by SHAP"] = few, partial(shapley, detector, background, job["seed"])
    return ways


def run(job: Job) -> dict[str, Any]:
    """Plant, explain, and count how often the column named first is the planted one."""
    most, count, _ = SIZES[job["scale"]]
    hits: dict[str, dict[str, dict[str, float]]] = {}
    seconds: dict[str, float] = defaultdict(float)
    explained: dict[str, int] = defaultdict(int)
    for name, (train, normal) in _sets(job["scale"], job["seed"]).items():
        rng = np.random.default_rng(job["seed"])
        train, rows = train[:most], normal[rng.permutation(len(normal))[:count]].astype(np.float64)
        scaler = StandardScaler().fit(train)
        ways = _ways(train, scaler, job)
        hits[name] = {}
        for kind in KINDS:
            wrong, columns = _planted(kind, rows, scaler, rng)
            hits[name][kind] = {"chance": 1 / int((scaler.var_ > 0).sum())}
            for row, (first, way) in ways.items():
                began = time.process_time()
                hits[name][kind][row] = float((way(wrong[:first]).argmin(1) == columns[:first]).mean())
                seconds[row] += time.process_time() - began
                explained[row] += len(wrong[:first])
    return {"hits": hits, "milliseconds": {row: 1000 * took / explained[row] for row, took in seconds.items()}}


def _mean(record: Record, kind: str, row: str) -> float:
    return float(np.mean([table[kind][row] for table in record["metrics"]["hits"].values()]))


def _rows(records: list[Record]) -> list[str]:
    """Return the ways that every record has tried."""
    return [row for row in ROWS if all(row in record["metrics"]["milliseconds"] for record in records)]


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    tables, rows = len(records[0]["metrics"]["hits"]), _rows(records)
    lines = [
        f"How often the column named first is the wrong one, over {tables} tables. Exchanged: one cell is another "
        "row's, which often fits as well; shifted: three standard deviations added. The z-score names the column "
        f"farthest from its mean. SHAP explains the same detector's score by {EVALUATIONS} evaluations a row, its own "
        f"default (more where there are over {(EVALUATIONS - 1) // 2} columns), and {BACKGROUND} training rows as "
        "background; it is slow and has some of the rows alone, beside what the detector says of the same. Time: "
        "processor milliseconds a row. Mean over seeds with Student's 95 % interval where there are several.",
        "",
        "| wrong cell | chance | " + " | ".join(rows) + " | seeds |",
        "|---" * (len(rows) + 3) + "|",
    ]
    for kind in KINDS:
        cells = [shown([_mean(record, kind, row) for record in records], share=True) for row in ("chance", *rows)]
        lines.append(f"| {kind} | {' | '.join(cells)} | {len(records)} |")
    times = [shown([record["metrics"]["milliseconds"][row] for record in records]) for row in rows]
    lines.append(f"| time | | {' | '.join(times)} | {len(records)} |")
    if len(rows) < len(ROWS):
        lines += ["", "Without SHAP, which was not installed: `pip install 'offmanifold[bench]'`."]
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the hit rates."""
    dots = [
        (f"{kind} · {row}", *over_seeds([_mean(record, kind, row) for record in records]), None)
        for kind in KINDS
        for row in _rows(records)
    ]
    dot_rows(path, dots, "hit rate")


STUDY = Study(
    name="explanations",
    title="Do explanations name the wrong column?",
    paper="no paper's",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
)
