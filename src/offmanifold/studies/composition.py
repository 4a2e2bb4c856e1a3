"""P3, Fig. 12 and appendix C.3: a large latent space reconstructs what is made of known parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from offmanifold.detectors.ae import AE
from offmanifold.measures.detection import auroc
from offmanifold.report.figures import ACCENT, NORMAL, OUTLIER, new_figure, write_figure
from offmanifold.studies import mnist_holdout
from offmanifold.studies.core import Job, Record, Study, over_seeds, shown
from offmanifold.studies.mnist_ood import chimeras
from offmanifold.studies.refusals import made

DIGIT = 9
LATENT_DIMS = {"smoke": (2,), "laptop": (2, 4, 8, 16, 32, 64), "paper": (2, 4, 8, 16, 32, 64, 128, 256)}
# Fewer than the hold-out study's: what is asked is the trend over sizes.
STEPS: dict[str, dict[str, int]] = {"smoke": {}, "laptop": {"steps": 1000}, "paper": {}}
KINDS = {"digit": f"digit {DIGIT}", "half": "Half", "chimera": "Chimera"}
COLOURS = {"normal": NORMAL, "digit": OUTLIER, "half": ACCENT, "chimera": "#CC79A7"}


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a latent size and seed."""
    _, images, test = mnist_holdout.SIZES[scale]
    return [
        {
            "name": f"z{latent_dim}-seed{seed}",
            "latent_dim": latent_dim,
            "seed": seed,
            "train_images": images,
            "test_images": test,
            "parameters": mnist_holdout.parameters_of("ae", scale, {"latent": "sphere"})
            | STEPS[scale]
            | {"latent_dim": latent_dim},
        }
        for latent_dim in LATENT_DIMS[scale]
    ]


def run(job: Job) -> dict[str, Any]:
    """Train an autoencoder without the digit; reconstruct the digit, halves and chimeras of other digits."""
    train, mnist = mnist_holdout.without(DIGIT, job["train_images"])
    n = job["test_images"]
    known = mnist.test_labels != DIGIT
    digits, labels = mnist.test[known], mnist.test_labels[known]
    rest = slice(n, None) if 2 * n <= len(digits) else slice(None)
    sets = {
        "normal": digits[:n],
        "digit": mnist.test[~known][:n],
        "half": made("Half", digits[rest][:n]),
        "chimera": chimeras(digits[rest], labels[rest], n),
    }
    detector = AE(**job["parameters"], random_state=job["seed"], verbose=False).fit(train)
    scores = {kind: detector.score_samples(images) for kind, images in sets.items()}
    return {
        "auroc": {kind: auroc(scores["normal"], scores[kind]).to_json() for kind in KINDS},
        # Mean and the middle 80 %, as the paper's error bars.
        "error": {
            kind: [float(-own.mean()), *(float(q) for q in np.quantile(-own, [0.1, 0.9]))]
            for kind, own in scores.items()
        },
        "arrays": {kind: own.astype(np.float32) for kind, own in scores.items()},
    }


def _by_size(records: list[Record]) -> dict[int, list[Record]]:
    sizes = sorted({r["job"]["latent_dim"] for r in records})
    return {size: [r for r in records if r["job"]["latent_dim"] == size] for size in sizes}


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    first = records[0]["job"]
    lines = [
        f"Autoencoders trained on {first['train_images']:,} MNIST images without digit {DIGIT}: AUROC, and the mean "
        "reconstruction error of normal images and of the digit. Mean over seeds with Student's 95 % interval where "
        "there are several. The paper shows a picture; its AUROCs of digit 9 stand in the study latent-dim.",
        "",
        f"| latent size | {' | '.join(KINDS.values())} | error, normal | error, {KINDS['digit']} | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, own in _by_size(records).items():
        cells = [shown([r["metrics"]["auroc"][kind]["value"] for r in own], share=True) for kind in KINDS]
        errors = [f"{np.mean([r['metrics']['error'][kind][0] for r in own]):.4f}" for kind in ("normal", "digit")]
        lines.append(f"| {size} | {' | '.join(cells + errors)} | {len(own)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw errors with their middle 80 %, and the AUROCs, over the latent size."""
    by_size = _by_size(records)
    sizes = np.array(list(by_size))
    drawing = new_figure(9, 3.6)
    left, right = drawing.subplots(1, 2)
    for offset, kind in enumerate(("normal", *KINDS)):
        mean, low, high = np.array(
            [np.mean([r["metrics"]["error"][kind] for r in own], 0) for own in by_size.values()]
        ).T
        label = KINDS.get(kind, "normal")
        left.errorbar(
            sizes * 1.06**offset,
            mean,
            [mean - low, high - mean],
            fmt="o-",
            color=COLOURS[kind],
            markersize=3,
            linewidth=1,
            capsize=2,
            label=label,
        )
        if kind != "normal":
            values = np.array(
                [over_seeds([r["metrics"]["auroc"][kind]["value"] for r in own]) for own in by_size.values()]
            )
            right.plot(sizes, values[:, 0], "o-", color=COLOURS[kind], markersize=3, linewidth=1, label=label)
            low, high = values[:, 1:].clip(0, 1).T  # Student's interval does not know of these bounds
            right.fill_between(sizes, low, high, color=COLOURS[kind], alpha=0.15, linewidth=0)
    left.set_ylabel("reconstruction error (mean, middle 80 %)")
    right.set_ylabel("AUROC")
    right.axhline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("latent size")
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, fontsize=8)
    write_figure(drawing, path)


STUDY = Study(
    name="composition",
    title="When does an autoencoder reconstruct what is made of known parts?",
    paper="P3, Fig. 12",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
    detectors=lambda job: [AE(**job["parameters"])],
)
