"""P3, Figs. 7, 9 and 10: what the normalised autoencoder's chains bring up, before and after normalisation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from offmanifold.detectors.nae import NAE
from offmanifold.measures.plain import Neighbours
from offmanifold.report.figures import new_figure, write_figure
from offmanifold.studies import mnist_holdout
from offmanifold.studies.core import Job, Record, Study, arrays_of, shown, watched_by

# As in P3's Fig. 9.
DIGIT = 9
STAGES = {"first phase alone": {"steps": 1}, "normalised": {}}
KINDS = {"prior": "decoded prior", "start": "on-manifold start", "sample": "sample", "data": "test image"}
# Scale → chains to run, images of a sheet's row.
SIZES = {"smoke": (12, 6), "laptop": (256, 12), "paper": (1000, 20)}


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a stage and seed."""
    _, images, _ = mnist_holdout.SIZES[scale]
    n, shown_images = SIZES[scale]
    return [
        {
            "name": f"stage{index}-seed{seed}",
            "stage": stage,
            "seed": seed,
            "train_images": images,
            "samples": n,
            "shown": shown_images,
            "parameters": mnist_holdout.parameters_of("nae", scale, {"negatives": "omi"}) | own,
        }
        for index, (stage, own) in enumerate(STAGES.items())
    ]


def run(job: Job) -> dict[str, Any]:
    """Train, run the chains, and compare what they bring up with digits."""
    train, mnist = mnist_holdout.without(DIGIT, job["train_images"])
    detector = NAE(**job["parameters"], random_state=job["seed"], verbose=False).fit(train)
    n = job["samples"]
    sets = {
        "prior": detector.sample(n, latent_steps=0, visible_steps=0, random_state=0),
        "start": detector.sample(n, visible_steps=0, random_state=0),
        "sample": detector.sample(n, random_state=0),
    }
    sets["data"] = mnist.test[mnist.test_labels != DIGIT][:n] / 255
    nearest = Neighbours(1).fit(train / 255)
    return {
        "error": {kind: float(-detector.score_samples(images).mean()) for kind, images in sets.items()},
        "distance": {kind: float(nearest.nearest(images)[0].mean()) for kind, images in sets.items()},
        "arrays": {kind: (images[: job["shown"]] * 255).round().astype(np.uint8) for kind, images in sets.items()},
    }


def _in_order(records: list[Record]) -> list[tuple[str, list[Record]]]:
    return [(stage, [r for r in records if r["job"]["stage"] == stage]) for stage in STAGES]


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    first = records[0]["job"]
    lines = [
        f"{first['samples']} chains of NAEs trained on MNIST without digit {DIGIT} ({first['train_images']:,} images): "
        f"reconstruction error, and the distance in pixels to the nearest training image. {watched_by('image')} Mean "
        "over seeds with Student's 95 % interval where there are several. The paper shows pictures.",
        "",
        "| weights | image | error | distance to the nearest digit | seeds |",
        "|---|---|---|---|---|",
    ]
    for stage, own in _in_order(records):
        for kind, name in KINDS.items():
            if own:
                error = f"{np.mean([r['metrics']['error'][kind] for r in own]):.4f}"
                distance = shown([r["metrics"]["distance"][kind] for r in own])
                lines.append(f"| {stage} | {name} | {error} | {distance} | {len(own)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the sheets of the first seed."""
    rows = [
        (stage, kind, arrays_of(own[0])[kind])
        for stage, own in _in_order(records)
        if own
        for kind in KINDS
        if kind != "data"
    ]
    columns = len(rows[0][2])
    drawing = new_figure(0.62 * columns + 1.8, 0.66 * len(rows) + 0.4)
    for axes, (stage, kind, images) in zip(drawing.subplots(len(rows), columns), rows, strict=True):
        for axis, image in zip(axes, images, strict=True):
            axis.imshow(image, cmap="gray_r", vmin=0, vmax=255)
            axis.set_xticks([])
            axis.set_yticks([])
        label = KINDS[kind] if kind != "prior" else f"{stage}:\n{KINDS[kind]}"
        axes[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    write_figure(drawing, path)


STUDY = Study(
    name="samples",
    title="What do the chains bring up, before and after normalisation?",
    paper="P3, Figs. 7, 9, 10",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
    detectors=lambda job: [NAE(**job["parameters"])],
)
