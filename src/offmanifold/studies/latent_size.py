"""P0, Table 1 and Fig. 2: a larger latent space costs nothing, for training prunes what is superfluous."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from offmanifold.detectors.vae import VAE
from offmanifold.report.figures import NORMAL, OUTLIER, new_figure, write_figure
from offmanifold.studies.core import Job, Record, Study, arrays_of
from offmanifold.studies.gaussian_vae import DATA, SIZES, by, column, measured, parameters_of

# κ → the paper's γ, bits/dim of training, test and MNIST images (its own offset: about 4 above ours).
PAPER = {
    16: (0.0055, 2.375, 2.805, 9.598), 32: (0.0040, 2.208, 2.690, 8.618), 64: (0.0030, 2.084, 2.562, 6.294),
    128: (0.0024, 2.009, 2.424, 4.958), 256: (0.0023, 2.054, 2.397, 4.578), 512: (0.0024, 2.020, 2.301, 4.351),
}  # fmt: skip


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a latent size and seed."""
    images, test = SIZES[scale]
    return [
        {"name": f"k{size}-seed{seed}", "latent_dim": size, "seed": seed, "train_images": images, "test_images": test,
         "parameters": parameters_of(scale, latent_dim=size)}
        for size in (list(PAPER)[:2] if scale == "smoke" else PAPER)
    ]  # fmt: skip


def run(job: Job) -> dict[str, Any]:
    """Train on Fashion-MNIST and measure."""
    train, test, others = DATA["fashion"](job["train_images"], job["test_images"])
    detector = VAE(**job["parameters"], random_state=job["seed"], verbose=False).fit(train)
    return measured(detector, train, test, others)


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    first = records[0]["job"]
    lines = [
        f"Fashion-MNIST ({first['train_images']:,} images, {first['parameters']['steps']:,} steps) against MNIST. Bits "
        "a dimension on the [0, 1] scale (discrete pixels: 8 more); the paper's, in brackets, have an offset of about "
        "4. Mean over seeds with Student's 95 % interval where there are several.",
        "",
        "| κ | γ | bits/dim, training | test | MNIST | AUROC of MNIST | active latents | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for size, own in by(records, "latent_dim").items():
        cells = [
            column(own, "gamma"), *(column(own, "bits_per_dim", kind) for kind in ("train", "test", "MNIST"))
        ]  # fmt: skip
        cells = [f"{cell} ({value:g})" for cell, value in zip(cells, PAPER[size], strict=True)]
        cells += [column(own, "auroc", "MNIST", "elbo", "value"), column(own, "active")]
        lines.append(f"| {size} | {' | '.join(cells)} | {len(own)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the histograms of the negative log-likelihoods of the largest sizes."""
    sizes = list(by(records, "latent_dim").items())[-2:]
    drawing = new_figure(9, 3.4)
    for axes, (size, own) in zip(np.atleast_1d(drawing.subplots(1, len(sizes))), sizes, strict=True):
        arrays = arrays_of(own[0])
        pooled = np.concatenate([arrays["nll_test"], arrays["nll_MNIST"]])
        edges = np.linspace(pooled.min(), np.quantile(pooled, 0.99), 60)
        for kind, label, colour in (
            ("train", "Fashion-MNIST, training", "0.5"),
            ("test", "Fashion-MNIST, test", NORMAL),
            ("MNIST", "MNIST", OUTLIER),
        ):
            axes.hist(arrays[f"nll_{kind}"], edges, density=True, alpha=0.6, color=colour, label=label)
        axes.set_title(f"κ = {size}", fontsize=10)
        axes.set_xlabel("−ELBO (nats)")
        axes.set_yticks([])
        axes.spines[["top", "right", "left"]].set_visible(False)
    drawing.axes[0].legend(frameon=False, fontsize=8)
    write_figure(drawing, path)


STUDY = Study(
    name="latent-size",
    title="Does a larger latent space let outliers in?",
    paper="P0, Table 1 and Fig. 2",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
    detectors=lambda job: [VAE(**job["parameters"])],
)
