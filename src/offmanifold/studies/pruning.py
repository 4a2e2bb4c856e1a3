"""P0, Fig. 4: how much each latent tells, when there are enough of them and when there are too many."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from offmanifold.detectors.vae import VAE
from offmanifold.measures.latents import ACTIVE, latent_information
from offmanifold.report.figures import ACCENT, NORMAL, OUTLIER, new_figure, write_figure
from offmanifold.studies.core import Job, Record, Study, shown
from offmanifold.studies.gaussian_vae import DATA, SIZES, WIDE, column, parameters_of

SIZES_OF_LATENTS = (32, 256)
CAPACITIES = (1.0, 4.0)
MOST_ROWS = {"smoke": 50, "laptop": 1000, "paper": 5000}


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a capacity, latent size and seed."""
    images, _ = SIZES[scale]
    return [
        {"name": f"alpha{alpha:g}-k{size}-seed{seed}", "alpha": alpha, "latent_dim": size, "seed": seed,
         "train_images": images, "rows": MOST_ROWS[scale],
         "parameters": parameters_of(
             scale, latent_dim=8 if scale == "smoke" else size, capacity=alpha, **WIDE[scale]
         )}
        for alpha in CAPACITIES
        for size in SIZES_OF_LATENTS
    ]  # fmt: skip


def run(job: Job) -> dict[str, Any]:
    """Train on Fashion-MNIST and split every latent's KL on its training images, as the paper does."""
    train, _, _ = DATA["fashion"](job["train_images"], 1)
    detector = VAE(**job["parameters"], random_state=job["seed"], verbose=False).fit(train)
    information = latent_information(detector, train[: 5 * job["rows"]], most_rows=job["rows"])
    arrays = {name: values for name, values in dataclasses.asdict(information).items() if name != "latent"}
    return {
        "active": int((information.kl > ACTIVE).sum()),
        "gamma": float(detector.gamma_) if detector.gamma_ is not None else None,
        "total_kl": float(information.kl.sum()),
        **{f"{name}_of_the_first": float(values[0]) for name, values in arrays.items()},
        "latents": {name: values.tolist() for name, values in arrays.items()},
    }


def _of(records: list[Record], alpha: float, size: int) -> list[Record]:
    return [r for r in records if r["job"]["alpha"] == alpha and r["job"]["latent_dim"] == size]


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    first = records[0]["job"]
    lines = [
        f"Fashion-MNIST ({first['train_images']:,} images, {first['parameters']['steps']:,} steps), training rows. "
        "Active: an averaged KL above 0.01 nats. The most informative latent's KL, and what of it is information about "
        "the row: between two bounds, and by Kraskov's estimator (which 784 dimensions pull to 0). Mean over seeds "
        "with Student's 95 % interval where there are several. The paper shows curves.",
        "",
        "| α | κ | active latents | their share | γ | KL of the first (nats) | information | Kraskov | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for alpha in CAPACITIES:
        for size in SIZES_OF_LATENTS:
            own = _of(records, alpha, size)
            if own:
                share = shown([r["metrics"]["active"] / len(r["metrics"]["latents"]["kl"]) for r in own], share=True)
                bounds = f"{column(own, 'low_of_the_first')} to {column(own, 'high_of_the_first')}"
                cells = [column(own, "active"), share, column(own, "gamma"), column(own, "kl_of_the_first")]
                cells += [bounds, column(own, "kraskov_of_the_first")]
                lines.append(f"| {alpha:g} | {size} | {' | '.join(cells)} | {len(own)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw KL and information of every latent, the largest first."""
    drawing = new_figure(9, 5.6)
    panels = drawing.subplots(len(CAPACITIES), len(SIZES_OF_LATENTS), squeeze=False)
    for line, alpha in zip(panels, CAPACITIES, strict=True):
        for axes, size in zip(line, SIZES_OF_LATENTS, strict=True):
            own = _of(records, alpha, size)
            if own:
                latents = own[0]["metrics"]["latents"]
                places = range(1, len(latents["kl"]) + 1)
                axes.plot(places, latents["kl"], color=NORMAL, label="averaged KL")
                axes.fill_between(places, latents["low"], latents["high"], color=ACCENT, alpha=0.5, label="information")
                axes.plot(places, latents["kraskov"], color=OUTLIER, linewidth=0.8, label="Kraskov's estimate")
                axes.axhline(0.01, color="0.6", linewidth=0.8, linestyle=":")
            axes.set_title(f"capacity ×{alpha:g}, κ = {size}", fontsize=10)
            axes.set_xlabel("latent, the most informative first")
            axes.set_ylabel("nats")
            axes.spines[["top", "right"]].set_visible(False)
    panels[0, 0].legend(frameon=False, fontsize=8)
    write_figure(drawing, path)


STUDY = Study(
    name="pruning",
    title="How many latents carry information?",
    paper="P0, Fig. 4",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
    detectors=lambda job: [VAE(**job["parameters"])],
)
