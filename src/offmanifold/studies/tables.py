"""Real tables with real outliers: our detectors beside PyOD's and nearest neighbours, one default for all tables."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.preprocessing import StandardScaler

from offmanifold.data import benchmarks
from offmanifold.detectors import DETECTORS, MultiscaleDenoiser, OutlierDetector
from offmanifold.measures.detection import aupr, auroc
from offmanifold.measures.plain import Neighbours
from offmanifold.measures.ranks import friedman, mean_ranks, nemenyi_difference
from offmanifold.report.figures import critical_difference
from offmanifold.studies.core import Job, Record, Study, shown, watched_by
from offmanifold.studies.memory import peak_memory

Array = npt.NDArray[Any]
SMOKE = ("breast cancer", "wine")  # they come with scikit-learn
REFERENCE = "kNN"


class Row(NamedTuple):
    """A row of the table.

    Attributes
    ----------
    source : str
        A key in ``DETECTORS``, or module:class of PyOD; empty for nearest neighbours.
    own : dict
        What is not left at its default.
    quick : dict
        The same at smoke scale.
    standardised : bool
        Whether it is given standardised columns; the others standardise by themselves.
    ablation : bool
        Whether it is a variant, which is not ranked.
    """

    source: str
    own: dict[str, Any] = {}  # noqa: RUF012 -- never written to
    quick: dict[str, Any] = {}  # noqa: RUF012
    standardised: bool = False
    ablation: bool = False


ROWS = {
    "MultiscaleDenoiser": Row("multiscale-denoiser", quick={"steps": 3, "hidden": [16]}),
    "AE": Row("ae", quick={"steps": 3}),
    "VAE": Row("vae", quick={"steps": 3}),
    "NAE": Row("nae", quick={"steps": 3, "pretraining_steps": 3, "visible_chain": [2, 0.1, 0.1]}),
    REFERENCE: Row("", standardised=True),
    "LOF": Row("lof:LOF", standardised=True),
    "IForest": Row("iforest:IForest", standardised=True),
    "ECOD": Row("ecod:ECOD", standardised=True),
    "PCA": Row("pca:PCA"),
    "PyOD AutoEncoder": Row("auto_encoder:AutoEncoder", quick={"epoch_num": 1}),
    "PyOD VAE": Row("vae:VAE", quick={"epoch_num": 1}),
    "DeepSVDD": Row("deep_svdd:DeepSVDD", quick={"epochs": 1}),
    "MultiscaleDenoiser, 1200 steps": Row(
        "multiscale-denoiser", {"steps": 1200}, {"steps": 2, "hidden": [16]}, ablation=True
    ),
}
# What is left of the evidence, the learned denoiser's and the stored rows', (n, noise levels) each, and how it is
# combined.
Rule = Callable[[Array, Array], Array]


def _log_mean_exp(evidence: Array) -> Array:
    found: Array = np.logaddexp.reduce(evidence, axis=1) - np.log(evidence.shape[1])
    return found


def _both(learned: Array, stored: Array) -> Array:
    """Return the combination that MultiscaleDenoiser scores by."""
    return _log_mean_exp(np.stack([_log_mean_exp(learned), _log_mean_exp(stored)], 1))


PARTS: dict[str, Rule] = {
    "the learned denoiser alone": lambda learned, stored: _log_mean_exp(learned),
    "the stored rows alone": lambda learned, stored: _log_mean_exp(stored),
    "each side's two smallest noise levels": lambda learned, stored: _both(learned[:, :2], stored[:, :2]),
    "each side's two largest": lambda learned, stored: _both(learned[:, -2:], stored[:, -2:]),
    "the mean in place of log-mean-exp": lambda learned, stored: learned.mean(1) + stored.mean(1),
    "the maximum in its place": lambda learned, stored: np.maximum(learned.max(1), stored.max(1)),
}


def _at_hand() -> list[str]:
    """Return the rows that can be made here: without PyOD not all."""
    pyod = importlib.util.find_spec("pyod") is not None
    return [name for name, row in ROWS.items() if pyod or ":" not in row.source]


def _load(name: str, seed: int) -> benchmarks.Table:
    if name not in SMOKE:
        return benchmarks.table(name, seed)
    rows, labels = (load_breast_cancer if name == "breast cancer" else load_wine)(return_X_y=True)
    rng = np.random.default_rng(seed)
    normal, odd = rng.permutation(rows[labels == 1])[:160], rng.permutation(rows[labels == 0])[:40]
    return benchmarks.Table(name, normal[: len(normal) // 2], normal[len(normal) // 2 :], odd)


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a row, table and seed."""
    names = SMOKE if scale == "smoke" else benchmarks.table_names()
    return [
        {
            "name": f"{row}-{name}-seed{seed}".replace(",", "").replace(" ", "-").lower(),
            "row": row, "table": name, "seed": seed,
            "parameters": ROWS[row].quick if scale == "smoke" else ROWS[row].own,
        }
        for row in _at_hand()
        for name in names
    ]  # fmt: skip


def _make(source: str, columns: int, seed: int, parameters: dict[str, Any]) -> Any:
    """Return the detector, not fitted yet."""
    if not source:
        return Neighbours()
    if source in DETECTORS:
        return DETECTORS[source](random_state=seed, verbose=False, **parameters)
    module, name = source.split(":")
    cls = getattr(importlib.import_module(f"pyod.models.{module}"), name)
    if name == "DeepSVDD":
        parameters = {"n_features": columns, **parameters}
    known = inspect.signature(cls).parameters
    common = {"random_state": seed, "verbose": 0}
    return cls(**parameters, **{key: value for key, value in common.items() if key in known})


def _ours(job: Job) -> list[OutlierDetector]:
    source = ROWS[job["row"]].source
    return [DETECTORS[source](**job["parameters"])] if source in DETECTORS else []


def _score(model: Any, rows: Array) -> Array:
    """Return scores, high = normal."""
    if isinstance(model, Neighbours | OutlierDetector):
        found: Array = model.score_samples(rows)
    else:
        found = -np.asarray(model.decision_function(rows), dtype=np.float64)
    return found


def run(job: Job) -> dict[str, Any]:
    """Train on a table's normal rows, and measure on its other normal rows and its outliers."""
    row = ROWS[job["row"]]
    _, train, normal, odd = _load(job["table"], job["seed"])
    # In one call: ECOD's score of a row depends on the rows that come with it.
    test = np.concatenate([normal, odd])
    if row.standardised:
        scaler = StandardScaler().fit(train)
        train, test = scaler.transform(train), scaler.transform(test)
    memory: dict[str, float] = {}
    with warnings.catch_warnings(), peak_memory(memory):
        warnings.simplefilter("ignore")
        model = _make(row.source, train.shape[1], job["seed"], job["parameters"])
        began, fit_seconds = time.process_time(), time.perf_counter()
        model.fit(train)
        fitted, fit_seconds = time.process_time(), time.perf_counter() - fit_seconds
        scores = _score(model, test)
        scored = time.process_time()
    finite = np.isfinite(scores)
    # Where a division by zero left no number, the row is as abnormal as can be.
    scores = np.where(finite, scores, -1e300)
    parts = scores[: len(normal)], scores[len(normal) :]
    metrics: dict[str, Any] = {
        "auroc": auroc(*parts).to_json(),
        "aupr": aupr(*parts).to_json(),
        "fit_seconds": round(fit_seconds, 3),
        "peak_memory": memory,
        "processor_seconds": {"fit": round(fitted - began, 3), "score": round(scored - fitted, 3)},
        "rows": {
            "train": len(train),
            "normal": len(normal),
            "outliers": len(odd),
            "without_a_number": int((~finite).sum()),
        },
        "columns": train.shape[1],
    }
    arrays = {"normal": parts[0], "outliers": parts[1]}
    if isinstance(model, OutlierDetector):
        arrays["calibration"] = model.calibration_scores_
    if isinstance(model, MultiscaleDenoiser):
        arrays["evidence"] = model.evidence(test).astype(np.float32)
        sides = np.split(arrays["evidence"], [model.module_.learned_features], axis=1)
        metrics["parts"] = {}
        for name, rule in PARTS.items():
            found = -rule(*sides)
            metrics["parts"][name] = auroc(found[: len(normal)], found[len(normal) :]).value
    return metrics | {"arrays": arrays}


# --- what the records tell ------------------------------------------------------------------------------


class Seen(NamedTuple):
    """What the records tell.

    Attributes
    ----------
    tables : list of str
        Sorted by name.
    runs : dict of row → seed → records
        Those of a seed in the order of ``tables``; seeds with a table missing are left out.
    """

    tables: list[str]
    runs: dict[str, dict[int, list[Record]]]

    def values(self, row: str, read: Callable[[Record], float]) -> Array:
        """Return what is read from a row's records ``(seeds, tables)``."""
        return np.array([[read(record) for record in records] for records in self.runs[row].values()])

    def ranked(self) -> list[str]:
        """Return the rows that compete."""
        return [row for row in self.runs if not ROWS[row].ablation]

    def differences(self, row: str) -> Array | None:
        """Return the AUROC minus that of nearest neighbours ``(seeds, tables)``, for the seeds that both have."""
        own, other = self.runs[row], self.runs.get(REFERENCE, {})
        both = [seed for seed in own if seed in other]
        if not both:
            return None
        pairs = [zip(own[seed], other[seed], strict=True) for seed in both]
        return np.array([[_auroc(mine) - _auroc(theirs) for mine, theirs in pair] for pair in pairs])


def _auroc(record: Record) -> float:
    value: float = record["metrics"]["auroc"]["value"]
    return value


def _aupr(record: Record) -> float:
    value: float = record["metrics"]["aupr"]["value"]
    return value


def seen(records: list[Record]) -> Seen:
    """Sort the records by row, seed and table."""
    names = sorted({record["job"]["table"] for record in records})
    found: dict[str, dict[int, dict[str, Record]]] = {}
    for record in records:
        job = record["job"]
        found.setdefault(job["row"], {}).setdefault(job["seed"], {})[job["table"]] = record
    runs = {
        row: {seed: [by[name] for name in names] for seed, by in sorted(found[row].items()) if len(by) == len(names)}
        for row in ROWS
        if row in found
    }
    return Seen(names, {row: by for row, by in runs.items() if by})


def _compared(found: Seen) -> tuple[dict[str, float], float | None, float | None]:
    """Return mean ranks of the rows that compete, the critical difference, and Friedman's p-value."""
    rows = found.ranked()
    if len(rows) < 3:
        return dict.fromkeys(rows, 1.0), None, None
    values = np.stack([found.values(row, _auroc).mean(0) for row in rows], 1)
    ranks = dict(zip(rows, mean_ranks(values).tolist(), strict=True))
    return ranks, nemenyi_difference(len(rows), len(found.tables)), friedman(values)


def _costs(found: Seen, row: str) -> list[str]:
    fit, score = (
        found.values(row, lambda record, part=part: record["metrics"]["processor_seconds"][part])  # type: ignore[misc]
        for part in ("fit", "score")
    )
    tested = found.values(
        row, lambda record: record["metrics"]["rows"]["normal"] + record["metrics"]["rows"]["outliers"]
    )
    peaks = found.values(row, lambda record: record["metrics"]["peak_memory"].get("mib", np.nan))
    memory = f"{peaks.max():,.0f}" if np.isfinite(peaks).all() else "–"
    return [f"{fit.sum(1).mean():.1f}", f"{tested.sum() / max(score.sum(), 1e-9):,.0f}", memory]


def _with_halves(values: Array) -> list[str]:
    """Return cells of the mean over tables, and over every other of them, from the first on and from the second on."""
    parts = (values, values[:, ::2], values[:, 1::2])
    return [shown(part.mean(1).tolist() if part.size else [], share=True) for part in parts]


def _mains(found: Seen) -> list[str]:
    ranks, difference, p = _compared(found)
    lines = [
        f"{len(found.tables)} tables, AUROC and area under precision and recall, mean over tables. One default "
        f"for all. {REFERENCE} (the fifth neighbour), LOF, IForest and ECOD are given standardised columns, as is "
        "usual; the others standardise by themselves. Halves: every other table by name. Rank: mean over tables. "
        f"Minus {REFERENCE}: the AUROC on the same rows; then the tables where it is higher, equal, lower, and the "
        "worst. Fit: processor time for all tables. Memory: what fitting and scoring took at most, on any table. "
        f"{watched_by('table')} Mean over seeds with Student's 95 % interval where there are several.",
        "",
        f"| detector | AUROC | first half | second half | AUPR | rank | minus {REFERENCE} | better, equal, worse | "
        "worst | fit (s) | rows scored a second | memory (MiB) | seeds |",
        "|---" * 13 + "|",
    ]
    for row in found.ranked():
        values = found.values(row, _auroc)
        cells = [*_with_halves(values), shown(found.values(row, _aupr).mean(1).tolist(), share=True)]
        cells += [f"{ranks[row]:.2f}", "–", "–", "–"]
        apart = found.differences(row)
        if apart is not None and row != REFERENCE:
            each = apart.mean(0)
            counts = map(str, ((each > 0).sum(), (each == 0).sum(), (each < 0).sum()))
            worst = f"{each.min():+.3f} ({found.tables[int(each.argmin())]})"
            cells[-3:] = [shown(apart.mean(1).tolist()), ", ".join(counts), worst]
        lines.append(f"| {row} | {' | '.join(cells)} | {' | '.join(_costs(found, row))} | {len(found.runs[row])} |")
    if p is not None:
        lines += ["", f"Friedman's test that all are equally good: p = {p:.1g}; critical difference of mean ranks "
                  f"(Nemenyi, 95 %): {difference:.2f}."]  # fmt: skip
    odd = {
        row: sorted(
            {r["job"]["table"] for runs in by.values() for r in runs if r["metrics"]["rows"]["without_a_number"]}
        )
        for row, by in found.runs.items()
    }
    lines += [
        f"{row} has rows without a number (counted as the most abnormal) on {', '.join(names)}."
        for row, names in odd.items()
        if names
    ]
    absent = [row for row in ROWS if row not in found.runs]
    if absent:
        lines += ["", f"Not run on all tables: {', '.join(absent)}."]
    if any(":" in ROWS[row].source for row in absent):
        lines[-1] += " What is PyOD's needs it: `pip install 'offmanifold[bench]'`."
    return lines


def _ablations(found: Seen) -> list[str]:
    whole = "MultiscaleDenoiser"
    if whole not in found.runs:
        return []
    lines = ["", "What the parts of `MultiscaleDenoiser` bring, AUROC; none of this chose a setting:", ""]
    lines += ["| | AUROC | first half | second half | seeds |", "|---|---|---|---|---|"]
    variants = {whole: found.values(whole, _auroc)}
    for part in PARTS:
        variants[part] = found.values(whole, lambda record, part=part: record["metrics"]["parts"][part])  # type: ignore[misc]
    variants |= {row: found.values(row, _auroc) for row in found.runs if ROWS[row].ablation}
    for name, values in variants.items():
        lines.append(f"| {name} | {' | '.join(_with_halves(values))} | {len(values)} |")
    return lines


def _each(found: Seen) -> list[str]:
    rows = found.ranked()
    lines = ["", "AUROC, table by table, mean over seeds:", "", f"| table | {' | '.join(rows)} |"]
    lines.append("|---" * (len(rows) + 1) + "|")
    values = np.stack([found.values(row, _auroc).mean(0) for row in rows], 1)
    for name, of_table in zip(found.tables, values, strict=True):
        lines.append(f"| {name} | {' | '.join(f'{value:.3f}' for value in of_table)} |")
    return lines


def table(records: list[Record]) -> str:
    """Return the Markdown tables."""
    found = seen(records)
    if not found.ranked():
        return "No detector has been run on all tables yet.\n"
    return "\n".join([*_mains(found), *_ablations(found), *_each(found)]) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the critical-difference diagram."""
    ranks, difference, _ = _compared(seen(records))
    critical_difference(path, ranks, difference, [row for row in ranks if ROWS[row].source in DETECTORS])


STUDY = Study(
    name="tables",
    title="Which detector finds the outliers of real tables?",
    paper="no paper's",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
    detectors=_ours,
    seeds={"smoke": (0,), "laptop": (0, 1), "paper": (0, 1, 2, 3, 4)},
)
