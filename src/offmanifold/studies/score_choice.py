"""Which of a VAE's scores should one use? AUROC of each, for learned and for fixed γ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from offmanifold.detectors.vae import VAE
from offmanifold.detectors.variational import SCORES
from offmanifold.report.figures import dot_rows
from offmanifold.studies.core import Job, Record, Study, over_seeds, shown
from offmanifold.studies.gaussian_vae import DATA, SIZES, column, measured, parameters_of

GAMMAS: tuple[float | str, ...] = ("learned", 1.0)
TRAINED_ON = {"fashion": "Fashion-MNIST", "cifar": "CIFAR-10"}


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a data set, γ and seed."""
    images, test = SIZES[scale]
    return [
        {"name": f"{data}-{gamma}-seed{seed}", "data": data, "gamma": gamma, "seed": seed, "train_images": images,
         "test_images": test, "parameters": parameters_of(scale, latent_dim=64, capacity=0.5, gamma=gamma)}
        for data in DATA
        for gamma in GAMMAS
    ]  # fmt: skip


def run(job: Job) -> dict[str, Any]:
    """Train and score."""
    train, test, others = DATA[job["data"]](job["train_images"], job["test_images"])
    detector = VAE(**job["parameters"], random_state=job["seed"], verbose=False).fit(train)
    return measured(detector, train, test, others)


def _groups(records: list[Record]) -> list[tuple[str, float | str, list[Record]]]:
    groups = []
    for data in DATA:
        for gamma in GAMMAS:
            own = [r for r in records if r["job"]["data"] == data and r["job"]["gamma"] == gamma]
            if own:
                groups.append((data, gamma, own))
    return groups


def _means(own: list[Record], score: str) -> list[float]:
    """Return each seed's mean over the kinds of outliers."""
    return [float(np.mean([kind[score]["value"] for kind in r["metrics"]["auroc"].values()])) for r in own]


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    first = records[0]["job"]
    lines = [
        f"AUROC by each score of the same models ({first['train_images']:,} images, "
        f"{first['parameters']['steps']:,} steps). Mean over seeds with Student's 95 % interval where there are "
        "several.",
        "",
        "| trained on | γ | against | " + " | ".join(SCORES) + " | seeds |",
        "|---" * (len(SCORES) + 4) + "|",
    ]
    for data, gamma, own in _groups(records):
        for kind in own[0]["metrics"]["auroc"]:
            cells = [column(own, "auroc", kind, score, "value") for score in SCORES]
            lines.append(f"| {TRAINED_ON[data]} | {gamma} | {kind} | {' | '.join(cells)} | {len(own)} |")
        means = [shown(_means(own, score), share=True) for score in SCORES]
        lines.append(f"| {TRAINED_ON[data]} | {gamma} | **mean** | {' | '.join(means)} | {len(own)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the means over kinds."""
    rows = [
        (f"{TRAINED_ON[data]}, γ {gamma} · {score}", *over_seeds(_means(own, score)), None)
        for data, gamma, own in _groups(records)
        for score in SCORES
    ]
    dot_rows(path, rows, "AUROC, mean over kinds of outliers")


STUDY = Study(
    name="score-choice",
    title="Which score of a VAE tells outliers best?",
    paper="P0, P1 and P3 use different ones",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
    detectors=lambda job: [VAE(**job["parameters"])],
)
