"""P1 Table II on the images at hand: CIFAR-10, with Tiny ImageNet as the auxiliary set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from offmanifold.data import benchmarks
from offmanifold.report.figures import dot_rows
from offmanifold.studies import negative_sampling
from offmanifold.studies.core import Job, Record, Study, over_seeds
from offmanifold.studies.negative_sampling import COLOUR, NOISE_MODELS, SCORES, Pixels, at_side, size_note

ROWS = ("none", "auxiliary", "adversarial", "hard")
# CIFAR-10 → SVHN, of which there is no copy here: for perspective.
PAPER = {
    "Bernoulli": {"none": (0.59, 0.29), "auxiliary": (0.90, 0.90), "adversarial": (0.81, 0.81)},
    "Gaussian, σ = 1": {"none": (0.25, 0.25), "auxiliary": (0.93, 0.93), "adversarial": (0.84, 0.84)},
}
OUTLIERS = ("Faces", "ConstantGray", "SVHN")


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a noise model and row."""
    return [
        {
            "name": f"{likelihood}-{row}-seed{seed}",
            "model": model,
            "row": row,
            "seed": seed,
            **COLOUR[scale].job(likelihood),
        }
        for model, likelihood in NOISE_MODELS.items()
        for row in ROWS
    ]


def _others(like: Pixels, count: int, seed: int) -> dict[str, Pixels]:
    grey = np.random.default_rng(seed).integers(0, 256, (count, 1, 1, 1), dtype=np.uint8)
    found = benchmarks.others_at_hand({"Faces": "lfw32", "SVHN": "svhn"}, count)
    side = like.shape[1]
    return {name: at_side(images, side) for name, images in found.items()} | {
        "ConstantGray": np.broadcast_to(grey, (count, *like.shape[1:])).copy()
    }


def run(job: Job) -> dict[str, Any]:
    """Train on CIFAR-10, and compare its test images with others."""
    cifar, side, count = benchmarks.images("cifar10"), job["side"], job["train_images"]
    auxiliary = None
    if job["row"] == "auxiliary":
        auxiliary = at_side(benchmarks.images("tinyimagenet32").train[:count], side)
    train = at_side(cifar.train[:count], side)
    detector = negative_sampling.fitted(job["row"], train, auxiliary, job["parameters"], job["seed"])
    normal = at_side(cifar.test[: job["test_images"]], side)
    return negative_sampling.compared(detector, normal, _others(normal, len(normal), job["seed"]))


def _of(records: list[Record], model: str, row: str, name: str) -> list[Record]:
    return [
        record
        for record in records
        if (record["job"]["model"], record["job"]["row"]) == (model, row) and name in record["metrics"]["auroc"]
    ]


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    first = records[0]["job"]
    lines = [
        f"CIFAR-10, AUROC; {size_note(first)}; {first['test_images']:,} test images of each. Auxiliary: Tiny ImageNet. "
        "In brackets the paper's figure, which is for SVHN. The printed results are of JPEG copies. Mean over seeds "
        "with Student's 95 % interval where there are several.",
        "",
        "| outliers | noise model | score | " + " | ".join(ROWS) + " |",
        "|---" * (3 + len(ROWS)) + "|",
    ]
    for name in OUTLIERS:
        if not any(name in record["metrics"]["auroc"] for record in records):
            continue
        for model, paper in PAPER.items():
            for i, (score, title) in enumerate(SCORES.items()):
                cells = [
                    negative_sampling.cell(_of(records, model, row, name), name, score)
                    + (f" ({paper[row][i]:.2f})" if row in paper else "")
                    for row in ROWS
                ]
                lines.append(f"| {name} | {model} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the AUROC by bits/dim."""
    dots = []
    for name in OUTLIERS:
        for model in PAPER:
            for row in ROWS:
                own = negative_sampling.values(_of(records, model, row, name), name, "bpd")
                if own:
                    dots.append((f"{name} · {model} · {row}", *over_seeds(own), None))
    dot_rows(path, dots, "AUROC by bits/dim, CIFAR-10 normal")


STUDY = Study(
    name="negatives-colour",
    title="Negative sampling on colour images",
    paper="P1, Table II",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
    detectors=lambda job: [negative_sampling.untrained(job["row"], job["parameters"])],
)
