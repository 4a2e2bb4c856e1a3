"""P1 Table I: negative sampling on grey images, and hard negatives beside it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from offmanifold.data import benchmarks
from offmanifold.report.figures import dot_rows
from offmanifold.studies import negative_sampling
from offmanifold.studies.core import Job, Record, Study, over_seeds, slug
from offmanifold.studies.negative_sampling import GREY, NOISE_MODELS, SCORES, Pixels, at_side, size_note

SETS = {"Fashion": "fashion_mnist", "MNIST": "mnist", "Letters": "emnist_letters"}
ROWS = ("none", "auxiliary", "adversarial", "hard")
# Inlier → outlier → noise model → row → (bits/dim, KL).
PAPER: dict[tuple[str, str, str], dict[str, tuple[float, float]]] = {
    ("Fashion", "MNIST", "Bernoulli"): {"none": (0.46, 0.61), "auxiliary": (1.00, 1.00), "adversarial": (0.70, 0.88)},
    ("Fashion", "MNIST", "Gaussian, σ = 1"): {
        "none": (0.98, 0.26), "auxiliary": (1.00, 1.00), "adversarial": (0.80, 0.74)
    },
    ("Fashion", "Letters", "Bernoulli"): {"none": (0.61, 0.68), "auxiliary": (0.99, 1.00), "adversarial": (0.78, 0.84)},
    ("Fashion", "Letters", "Gaussian, σ = 1"): {
        "none": (0.97, 0.38), "auxiliary": (1.00, 0.99), "adversarial": (0.85, 0.79)
    },
    ("MNIST", "Fashion", "Bernoulli"): {"none": (1.00, 0.73), "auxiliary": (1.00, 1.00), "adversarial": (1.00, 0.94)},
    ("MNIST", "Fashion", "Gaussian, σ = 1"): {
        "none": (0.97, 0.71), "auxiliary": (1.00, 1.00), "adversarial": (0.98, 0.98)
    },
    ("MNIST", "Letters", "Bernoulli"): {"none": (0.99, 0.64), "auxiliary": (0.99, 0.76), "adversarial": (0.98, 0.89)},
    ("MNIST", "Letters", "Gaussian, σ = 1"): {
        "none": (0.78, 0.54), "auxiliary": (0.93, 0.75), "adversarial": (0.79, 0.74)
    },
    ("Letters", "Fashion", "Bernoulli"): {"none": (0.98, 0.66), "auxiliary": (0.98, 0.54), "adversarial": (0.99, 0.98)},
    ("Letters", "Fashion", "Gaussian, σ = 1"): {
        "none": (0.80, 0.54), "auxiliary": (0.76, 0.49), "adversarial": (0.93, 0.91)
    },
    ("Letters", "MNIST", "Bernoulli"): {"none": (0.58, 0.37), "auxiliary": (0.58, 0.45), "adversarial": (0.73, 0.75)},
    ("Letters", "MNIST", "Gaussian, σ = 1"): {
        "none": (0.67, 0.36), "auxiliary": (0.58, 0.43), "adversarial": (0.65, 0.64)
    },
}  # fmt: skip


def jobs(scale: str, seed: int) -> list[Job]:
    """Return a job for each inlier set, noise model and row; with auxiliary negatives one for each outlier set."""
    made = []
    for inlier, model, row in itertools.product(SETS, NOISE_MODELS, ROWS):
        others = [name for name in SETS if name != inlier]
        # The third set is the auxiliary one, so each outlier set has a model of its own.
        for outliers in [[name] for name in others] if row == "auxiliary" else [others]:
            ending = f"-{slug(outliers[0])}" if row == "auxiliary" else ""
            made.append({
                "name": f"{slug(inlier)}-{NOISE_MODELS[model]}-{row}{ending}-seed{seed}",
                "inlier": inlier, "outliers": outliers, "model": model, "row": row, "seed": seed,
                **GREY[scale].job(NOISE_MODELS[model]),
            })  # fmt: skip
    return made


def run(job: Job) -> dict[str, Any]:
    """Train on one set, and compare its test images with those of the others."""

    def train(name: str) -> Pixels:
        return at_side(benchmarks.images(SETS[name]).train[: job["train_images"]], job["side"])

    def test(name: str) -> Pixels:
        return at_side(benchmarks.images(SETS[name]).test[: job["test_images"]], job["side"])

    auxiliary = None
    if job["row"] == "auxiliary":
        (left,) = set(SETS) - {job["inlier"], *job["outliers"]}
        auxiliary = train(left)
    detector = negative_sampling.fitted(job["row"], train(job["inlier"]), auxiliary, job["parameters"], job["seed"])
    return negative_sampling.compared(detector, test(job["inlier"]), {name: test(name) for name in job["outliers"]})


def _of(records: list[Record], key: tuple[str, str, str], row: str) -> list[Record]:
    return [
        record
        for record in records
        if (record["job"]["inlier"], record["job"]["model"], record["job"]["row"]) == (key[0], key[2], row)
        and key[1] in record["job"]["outliers"]
    ]


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    first = records[0]["job"]
    lines = [
        f"AUROC; {size_note(first)}; {first['test_images']:,} test images of each. The paper's figure in brackets. "
        "Auxiliary: the third of the sets. Mean over seeds with Student's 95 % interval where there are several.",
        "",
        "| normal → outliers | noise model | score | " + " | ".join(ROWS) + " |",
        "|---" * (3 + len(ROWS)) + "|",
    ]
    for key, paper in PAPER.items():
        for i, (score, title) in enumerate(SCORES.items()):
            cells = []
            for row in ROWS:
                own = _of(records, key, row)
                theirs = f" ({paper[row][i]:.2f})" if row in paper else ""
                cells.append(negative_sampling.cell(own, key[1], score) + theirs)
            lines.append(f"| {key[0]} → {key[1]} | {key[2]} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the bits/dim columns."""
    dots = []
    for key, paper in PAPER.items():
        for row in ROWS:
            found = negative_sampling.values(_of(records, key, row), key[1], "bpd")
            if found:
                theirs = paper[row][0] if row in paper else None
                dots.append((f"{key[0]} → {key[1]} · {key[2]} · {row}", *over_seeds(found), theirs))
    dot_rows(path, dots, "AUROC by bits/dim")


STUDY = Study(
    name="negatives-grey",
    title="Do negatives make a VAE tell what it confuses?",
    paper="P1, Table I",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
    detectors=lambda job: [negative_sampling.untrained(job["row"], job["parameters"])],
)
