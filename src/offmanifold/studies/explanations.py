"""Do explanations name the column that is wrong? Anomalies planted in known columns of normal rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.preprocessing import StandardScaler

from offmanifold.data import benchmarks
from offmanifold.detectors import AE, VAE
from offmanifold.report.figures import dot_rows
from offmanifold.studies.core import Job, Record, Study, over_seeds, shown

Array = npt.NDArray[Any]
# Scale → rows to learn from, rows to plant in; smoke scale has the tables of scikit-learn alone.
SIZES = {"smoke": (100, 20), "laptop": (2000, 200), "paper": (10_000, 1000)}
DETECTORS = {"AE": AE, "VAE": VAE}
KINDS = ("exchanged", "shifted")
ROWS = ("z-score", "AE", "VAE")


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
    return [{"name": f"planted-seed{seed}", "scale": scale, "seed": seed}]


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


def run(job: Job) -> dict[str, Any]:
    """Plant, explain, and count how often the column named first is the planted one."""
    most, count = SIZES[job["scale"]]
    quick = {"steps": 3} if job["scale"] == "smoke" else {}
    hits: dict[str, dict[str, dict[str, float]]] = {}
    for name, (train, normal) in _sets(job["scale"], job["seed"]).items():
        rng = np.random.default_rng(job["seed"])
        train, rows = train[:most], normal[rng.permutation(len(normal))[:count]].astype(np.float64)
        scaler = StandardScaler().fit(train)
        fitted = {
            row: cls(random_state=job["seed"], verbose=False, **quick).fit(train) for row, cls in DETECTORS.items()
        }
        hits[name] = {}
        for kind in KINDS:
            wrong, columns = _planted(kind, rows, scaler, rng)
            named = {"z-score": np.abs(scaler.transform(wrong)).argmax(1)}
            named |= {row: detector.explain(wrong).contributions.argmin(1) for row, detector in fitted.items()}
            hits[name][kind] = {row: float((found == columns).mean()) for row, found in named.items()}
            hits[name][kind]["chance"] = 1 / int((scaler.var_ > 0).sum())
    return {"hits": hits}


def _mean(record: Record, kind: str, row: str) -> float:
    return float(np.mean([table[kind][row] for table in record["metrics"]["hits"].values()]))


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    tables = len(records[0]["metrics"]["hits"])
    lines = [
        f"How often the column named first is the wrong one, over {tables} tables. Exchanged: one cell is another "
        "row's, which often fits as well; shifted: three standard deviations added. The z-score names the column "
        "farthest from its mean. Mean over seeds with Student's 95 % interval where there are several.",
        "",
        "| wrong cell | chance | " + " | ".join(ROWS) + " | seeds |",
        "|---" * (len(ROWS) + 3) + "|",
    ]
    for kind in KINDS:
        cells = [shown([_mean(record, kind, row) for record in records], share=True) for row in ("chance", *ROWS)]
        lines.append(f"| {kind} | {' | '.join(cells)} | {len(records)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the hit rates."""
    dots = [
        (f"{kind} · {row}", *over_seeds([_mean(record, kind, row) for record in records]), None)
        for kind in KINDS
        for row in ROWS
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
