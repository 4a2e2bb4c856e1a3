"""P1 Table III: which negatives help, and whether their rating before training says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from offmanifold.data import benchmarks
from offmanifold.diagnosis.negatives import rate_negatives
from offmanifold.measures.estimates import rank_correlation
from offmanifold.report.figures import dot_rows
from offmanifold.studies import negative_sampling
from offmanifold.studies.core import Job, Record, Study, over_seeds, shown
from offmanifold.studies.negative_sampling import GREY, SCORES, Pixels, at_side, size_note

# Row → file of its images; those without are made from the training images.
CANDIDATES = {
    "random": None, "noise": None, "KMNIST": "kmnist_test", "Letters": "emnist_letters", "Omniglot": "omniglot28"
}  # fmt: skip
ROWS = ("none", *CANDIDATES, "adversarial", "hard")
PAPER = {
    "none": (0.46, 0.61), "random": (0.47, 0.56), "noise": (0.44, 0.70), "KMNIST": (1.00, 1.00),
    "adversarial": (0.70, 0.88),
}  # fmt: skip


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a kind of negatives."""
    return [
        {"name": f"{row.lower()}-seed{seed}", "row": row, "seed": seed, **GREY[scale].job("bernoulli")} for row in ROWS
    ]


def _images(row: str, train: Pixels, count: int, seed: int) -> Pixels | None:
    """Return negatives of a kind, or None where training makes them from the model."""
    if row not in CANDIDATES:
        return None
    rng = np.random.default_rng(seed)
    if row == "random":
        return rng.integers(0, 256, (count, *train.shape[1:]), dtype=np.uint8)
    if row == "noise":  # P1: σ = 0.25 of the range
        return np.clip(train[:count] + 0.25 * 255 * rng.normal(size=train[:count].shape), 0, 255).astype(np.uint8)
    held = benchmarks.images(str(CANDIDATES[row]))
    return at_side((held.train if len(held.train) else held.test)[:count], train.shape[1])


def _kind(row: str) -> str:
    return "auxiliary" if row in CANDIDATES else row


def run(job: Job) -> dict[str, Any]:
    """Train on Fashion-MNIST with one kind of negatives; without any, rate all of them beforehand."""
    fashion, side, count = benchmarks.images("fashion_mnist"), job["side"], job["test_images"]
    train = at_side(fashion.train[: job["train_images"]], side)
    given = _images(job["row"], train, job["train_images"], job["seed"])
    detector = negative_sampling.fitted(_kind(job["row"]), train, given, job["parameters"], job["seed"])
    normal, odd = (at_side(images[:count], side) for images in (fashion.test, benchmarks.images("mnist").test))
    metrics = negative_sampling.compared(detector, normal, {"MNIST": odd})
    if job["row"] == "none":
        candidates = {name: _images(name, train, count, job["seed"]) for name in CANDIDATES}
        rated = rate_negatives(detector, at_side(fashion.test[-2 * count :], side), candidates)
        metrics["rating"] = {one.name: one.to_json() for one in rated}
    return metrics


def _gains(records: list[Record]) -> list[tuple[str, list[float], list[float]]]:
    """Return for each rated kind its headroom and the AUROC that it gained, seed by seed."""
    seeds = {record["job"]["seed"]: record for record in records if record["job"]["row"] == "none"}
    found = []
    for row in CANDIDATES:
        own = [record for record in records if record["job"]["row"] == row and record["job"]["seed"] in seeds]
        if not own:
            continue
        plain = [seeds[record["job"]["seed"]]["metrics"] for record in own]
        headroom = [metrics["rating"][row]["headroom"] for metrics in plain]
        gained = [
            record["metrics"]["auroc"]["MNIST"]["bpd"]["value"] - metrics["auroc"]["MNIST"]["bpd"]["value"]
            for record, metrics in zip(own, plain, strict=True)
        ]
        found.append((row, headroom, gained))
    return found


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    first = records[0]["job"]
    lines = [
        f"Fashion-MNIST → MNIST, Bernoulli, AUROC; {size_note(first)}. KMNIST: its test images stand in for its "
        "training set. The paper's figure in brackets. Headroom: what `offmanifold negatives` said of them before "
        "training. Mean over seeds with Student's 95 % interval where there are several.",
        "",
        "| negatives | bits/dim | KL | headroom | gain in bits/dim's AUROC |",
        "|---|---|---|---|---|",
    ]
    gains = {row: (headroom, gained) for row, headroom, gained in _gains(records)}
    for row in ROWS:
        own = [record for record in records if record["job"]["row"] == row]
        if not own:
            continue
        cells = [
            negative_sampling.cell(own, "MNIST", score) + (f" ({PAPER[row][i]:.2f})" if row in PAPER else "")
            for i, score in enumerate(SCORES)
        ]
        cells += [shown(values) for values in gains.get(row, ([], []))]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    if len(gains) > 2:
        pairs = [(h, g) for headroom, gained in gains.values() for h, g in zip(headroom, gained, strict=True)]
        correlation = rank_correlation([h for h, _ in pairs], [g for _, g in pairs])
        lines += ["", f"Rank correlation of headroom and gain over kinds and seeds: {correlation}."]
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the AUROC by bits/dim."""
    dots = []
    for row in ROWS:
        own = negative_sampling.values([r for r in records if r["job"]["row"] == row], "MNIST", "bpd")
        if own:
            dots.append((row, *over_seeds(own), PAPER[row][0] if row in PAPER else None))
    dot_rows(path, dots, "AUROC by bits/dim, Fashion-MNIST (normal) against MNIST")


STUDY = Study(
    name="negatives-sources",
    title="Which negatives help?",
    paper="P1, Table III",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
    detectors=lambda job: [negative_sampling.untrained(_kind(job["row"]), job["parameters"])],
)
