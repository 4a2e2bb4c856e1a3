"""P0, Table 2 and Fig. 3: capacity makes γ fall; what it does to images of other kinds."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from offmanifold.data import benchmarks
from offmanifold.detectors.vae import VAE
from offmanifold.report.figures import NORMAL, new_figure, write_figure
from offmanifold.studies.core import Job, Record, Study
from offmanifold.studies.gaussian_vae import DATA, SIZES, WIDE, by, column, measured, parameters_of

# α → the paper's γ, bits/dim of training and test images and of CelebA (its own offset: about 4 above ours).
PAPER = {
    0.25: (0.0110, 2.828, 2.824, 2.844), 0.5: (0.0101, 2.766, 2.761, 2.882), 1.0: (0.0082, 2.602, 2.598, 3.106),
    2.0: (0.0051, 2.275, 2.272, 3.965), 3.0: (0.0035, 1.981, 1.978, 5.053), 4.0: (0.0024, 1.728, 1.726, 6.424),
}  # fmt: skip


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a capacity and seed."""
    images, test = SIZES[scale]
    made = []
    for alpha in PAPER:
        if (scale == "smoke" and alpha > 0.5) or (scale == "laptop" and alpha == 3.0):
            continue
        parameters = parameters_of(scale, latent_dim=32, capacity=alpha, **WIDE[scale])
        made.append(
            {"name": f"alpha{alpha:g}-seed{seed}", "alpha": alpha, "seed": seed, "train_images": images,
             "test_images": test, "parameters": parameters}
        )  # fmt: skip
    return made


def run(job: Job) -> dict[str, Any]:
    """Train on CIFAR-10 and measure; add how far the complexity of an image alone explains its likelihood."""
    train, test, others = DATA["cifar"](job["train_images"], job["test_images"])
    paths = {name: file["path"] for name, file in job.get("against", {}).items()}
    others |= benchmarks.others_named(paths, job["test_images"], test)
    detector = VAE(**job["parameters"], random_state=job["seed"], verbose=False).fit(train)
    metrics = measured(detector, train, test, others)
    sizes = {
        kind: [len(zlib.compress(image.tobytes(), 9)) for image in images]
        for kind, images in {"test": test, **others}.items()
    }
    pooled = np.concatenate([metrics["arrays"][f"nll_{kind}"] for kind in sizes])
    metrics["complexity"] = {
        "spearman_with_nll": float(spearmanr(np.concatenate(list(sizes.values())), pooled).statistic),
        "bytes": {kind: float(np.mean(own)) for kind, own in sizes.items()},
    }
    return metrics


def kinds_of(records: list[Record]) -> list[str]:
    """Return the kinds of images that any record compares, in order."""
    return list(dict.fromkeys(kind for record in records for kind in record["metrics"]["auroc"]))


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    first = records[0]["job"]
    kinds = kinds_of(records)
    lines = [
        f"CIFAR-10 ({first['train_images']:,} images, {first['parameters']['steps']:,} steps, κ = 32) against images "
        "of other kinds; the paper's values are in brackets (its bits have an offset of about 4, its faces are "
        "CelebA's). The printed results are of a JPEG copy: only orderings compare with the paper's. Mean over seeds "
        "with Student's 95 % interval where there are several.",
        "",
        "| α | γ | bits/dim, training | test | "
        + " | ".join(f"bits/dim, {kind}" for kind in kinds)
        + " | "
        + " | ".join(f"AUROC, {kind}" for kind in kinds)
        + " | complexity and −ELBO, rank correlation | seeds |",
        "|---" * (6 + 2 * len(kinds)) + "|",
    ]
    for alpha, own in by(records, "alpha").items():
        paper = dict(zip(("gamma", "train", "test", "Faces"), PAPER[alpha], strict=True))
        cells = [f"{column(own, 'gamma')} ({paper['gamma']:g})"]
        cells += [
            column(own, "bits_per_dim", kind) + (f" ({paper[kind]:g})" if kind in paper else "")
            for kind in ("train", "test", *kinds)
        ]
        cells += [column(own, "auroc", kind, "elbo", "value") for kind in kinds]
        cells.append(column(own, "complexity", "spearman_with_nll"))
        lines.append(f"| {alpha:g} | {' | '.join(cells)} | {len(own)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw γ and the bits a dimension of each kind over capacity."""
    groups = by(records, "alpha")
    alphas = list(groups)
    drawing = new_figure(9, 3.4)
    left, right = drawing.subplots(1, 2)
    left.plot(alphas, [np.mean([r["metrics"]["gamma"] for r in own]) for own in groups.values()], "o-", color=NORMAL)
    left.set_ylabel("γ")
    for kind in ("train", "test", *kinds_of(records)):
        values = [[r["metrics"]["bits_per_dim"].get(kind, np.nan) for r in own] for own in groups.values()]
        if not np.isnan(values[0]).any():
            label = {"train": "CIFAR-10, training", "test": "CIFAR-10, test"}.get(kind, kind)
            right.plot(alphas, [np.mean(own) for own in values], "o-", markersize=3, label=label)
    right.set_ylabel("bits a dimension")
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(alphas, [f"{alpha:g}" for alpha in alphas])
        axes.minorticks_off()
        axes.set_xlabel("capacity α")
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(drawing, path)


STUDY = Study(
    name="capacity",
    title="What does capacity do to γ and to images of other kinds?",
    paper="P0, Table 2 and Fig. 3",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
    detectors=lambda job: [VAE(**job["parameters"])],
    against=True,
)
