"""P3, Fig. 11: between two clusters an autoencoder reconstructs what never was there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from offmanifold.data.toys import TwoBoxes
from offmanifold.detectors.ae import AE
from offmanifold.detectors.nae import NAE
from offmanifold.measures.detection import auroc
from offmanifold.report.figures import NORMAL, OUTLIER, new_figure, write_figure
from offmanifold.studies.core import Job, Record, Study, arrays_of, shown, watched_by

# Scale → training rows, steps of the autoencoder, of normalisation.
SIZES = {"smoke": (200, 10, 5), "laptop": (2_000, 500, 300), "paper": (10_000, 2_000, 2_000)}
LATENT_DIMS = (1, 2)


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a detector, latent size and seed."""
    rows, plain, normalised = SIZES[scale]
    made: list[Job] = []
    for latent_dim in LATENT_DIMS:
        shared = {"latent_dim": latent_dim, "network": "mlp", "hidden": [64, 64], "scale": None}
        for key, own in (
            ("ae", {"noise": 0.0, "steps": plain}),
            ("nae", {"noise": 0.0, "pretraining_steps": plain, "steps": normalised, "visible_chain": [20, 0.05, 0.1]}),
        ):
            made.append(
                {"name": f"{key}-z{latent_dim}-seed{seed}", "detector": key, "latent_dim": latent_dim, "seed": seed,
                 "rows": rows, "parameters": shared | own}
            )  # fmt: skip
    return made


def run(job: Job) -> dict[str, Any]:
    """Train on the boxes, score rows between them."""
    world, rng = TwoBoxes(), np.random.default_rng(job["seed"])
    train, normal = world.sample(job["rows"], rng), world.sample(500, rng)
    between = np.column_stack([rng.uniform(-1.5, 1.5, 500), rng.uniform(-0.5, 0.5, 500)])
    detector = {"ae": AE, "nae": NAE}[job["detector"]](**job["parameters"], random_state=job["seed"], verbose=False)
    detector.fit(train)
    made = {"normal": normal[:60], "between": between[:60]}
    arrays = {name: rows.astype(np.float32) for name, rows in made.items()}
    arrays |= {f"{name}_reconstructed": detector.reconstruct(rows).astype(np.float32) for name, rows in made.items()}
    scores = detector.score_samples(normal), detector.score_samples(between)
    return {"auroc": auroc(*scores).to_json(), "arrays": arrays}


def _of(records: list[Record], key: str, latent_dim: int) -> list[Record]:
    return [r for r in records if r["job"]["detector"] == key and r["job"]["latent_dim"] == latent_dim]


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    lines = [
        "Two boxes; AUROC of rows between them. No noise for either; NAE's chains on x: 20 steps, λ = 0.05, σ = 0.1. "
        f"{watched_by('table')} Mean over seeds with Student's 95 % interval where there are several. The paper shows "
        "a picture.",
        "",
        "| model | latent size | here | seeds |",
        "|---|---|---|---|",
    ]
    for latent_dim in LATENT_DIMS:
        for key in ("ae", "nae"):
            own = _of(records, key, latent_dim)
            if own:
                here = shown([r["metrics"]["auroc"]["value"] for r in own], share=True)
                lines.append(f"| {key.upper()} | {latent_dim} | {here} | {len(own)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw rows, and lines to their reconstructions."""
    drawing = new_figure(8, 4.2)
    for axes, (key, latent_dim) in zip(
        drawing.subplots(2, 2, sharex=True, sharey=True).flat,
        [(key, latent_dim) for latent_dim in LATENT_DIMS for key in ("ae", "nae")],
        strict=True,
    ):
        own = _of(records, key, latent_dim)
        if own:
            arrays = arrays_of(own[0])
            for name, colour, label in (("normal", NORMAL, "normal"), ("between", OUTLIER, "between")):
                rows, again = arrays[name], arrays[f"{name}_reconstructed"]
                axes.plot(*np.stack([rows, again], 1).T, color="0.6", linewidth=0.6)
                axes.plot(*rows.T, ".", color=colour, markersize=4, label=label)
            axes.set_title(
                f"{key.upper()}, latent size {latent_dim}: AUROC {own[0]['metrics']['auroc']['value']:.3f}", fontsize=9
            )
        axes.set_xlim(-3.6, 3.6)
        axes.set_ylim(-1.6, 1.6)
        axes.spines[["top", "right"]].set_visible(False)
    drawing.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    write_figure(drawing, path)


STUDY = Study(
    name="bimodal",
    title="Does the model reconstruct the gap between two clusters?",
    paper="P3, Fig. 11",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
)
