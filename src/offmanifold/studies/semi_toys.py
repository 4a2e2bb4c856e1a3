"""P2 Tables 3 and 4 and Figure 2: realistic rows or realistic counterfactuals, with few labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offmanifold.data.worlds import WORLDS
from offmanifold.detectors.semi_supervised import SemiSupervisedVAE
from offmanifold.measures.two_sample import smooth_knn_test
from offmanifold.report.figures import dot_rows
from offmanifold.studies.core import Job, Record, Study, over_seeds, shown

Array = npt.NDArray[np.float64]
# Scale → rows to train on, steps, restarts, rows of the two-sample tests. P2: 5 000, 5 000 and 5.
SIZES = {"smoke": (120, 3, 1, 30), "laptop": (5000, 2000, 2, 500), "paper": (5000, 5000, 5, 2000)}
METHODS: dict[str, dict[str, Any]] = {
    "VAE": {},
    "LIN": {"lagging": (0.1, 5)},
    "IWAE": {"bound": "iwae", "training_samples": 10},
}
LAGGING_SHARE = 10
# World → labels whose p(x | y) is compared (P2 Table 4), and P2's p(x), p(x | y) first and second.
COHORTS = {"discrete-semi-circle": (0.0, 1.0), "continuous-semi-circle": (-3.5, 3.5)}
PAPER = {
    "discrete-semi-circle": {
        "VAE": (0.196, 15.206, 11.501), "LIN": (0.703, 18.420, 10.118), "IWAE": (0.694, 1.426, 1.698)
    },
    "continuous-semi-circle": {
        "VAE": (0.024, 13.128, 16.046), "LIN": (0.128, 15.321, 17.530), "IWAE": (0.015, 15.951, 14.416)
    },
}  # fmt: skip
LABELLED = 0.1


def settings_of(method: str, steps: int, hidden: int) -> dict[str, Any]:
    """Return P2's settings (appendix J) for a method."""
    return {
        "hidden": (hidden,) * 3,
        "batch_size": 100,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "optimizer": "adam",
        "classifier_weight": 0.1,
        "steps": max(1, steps // LAGGING_SHARE) if method == "LIN" else steps,
        "verbose": False,
        **METHODS[method],
    }


def best_of(rows: Array, labels: Array, settings: Mapping[str, Any], seeds: list[int]) -> SemiSupervisedVAE:
    """Return the restart with the best training objective on held-out rows."""
    fitted = [SemiSupervisedVAE(**settings, random_state=seed).fit(rows, labels) for seed in seeds]
    return min(fitted, key=lambda detector: float(detector.training_summary()["semi-supervised-vae"]["judged_at"]))


def with_few_labels(labels: Array, rng: np.random.Generator) -> Array:
    """Return the labels with all but a tenth missing."""
    return np.where(rng.uniform(size=len(labels)) < LABELLED, labels, np.nan)


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a world and method; a seed is a data set."""
    rows, steps, restarts, compared = SIZES[scale]
    return [
        {
            "name": f"{world}-{method.lower()}-seed{seed}",
            "world": world,
            "method": method,
            "seed": seed,
            "rows": rows,
            "steps": steps,
            "restarts": restarts,
            "compared": compared,
        }
        for world in PAPER
        for method in METHODS
    ]


def run(job: Job) -> dict[str, Any]:
    """Train, and compare drawn rows with the world's: all of them, and of two labels."""
    world, rng = WORLDS[job["world"]], np.random.default_rng(job["seed"])
    drawn = world.sample(job["rows"], rng)
    assert drawn.y is not None
    settings = settings_of(job["method"], job["steps"], 50) | {
        "latent_dim": 1, "gamma": world.noise_variance, "scale": None
    }  # fmt: skip
    seeds = [1000 * job["seed"] + i for i in range(job["restarts"])]
    detector = best_of(drawn.x, with_few_labels(drawn.y, rng), settings, seeds)
    fresh = world.sample(job["compared"], rng).x
    count = job["compared"]
    found = {"x": smooth_knn_test(detector.sample(count, random_state=0), fresh).statistic}
    for i, label in enumerate(COHORTS[job["world"]]):
        z = rng.standard_normal(count)
        noise = np.sqrt(world.noise_variance) * rng.standard_normal((count, world.dimension))
        cohort = world.decode(z, label) + noise
        found[f"cohort{i + 1}"] = smooth_knn_test(detector.sample(count, y=label, random_state=1 + i), cohort).statistic
    known, truth = detector.predict_label(drawn.x), drawn.y
    agreement = np.mean(known == truth) if world.label == "binary" else np.corrcoef(known, truth)[0, 1]
    return {"knn": found, "label_agreement": float(agreement)}


def _of(records: list[Record], world: str, method: str, name: str) -> list[float]:
    return [
        record["metrics"]["knn"][name]
        for record in records
        if (record["job"]["world"], record["job"]["method"]) == (world, method)
    ]


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    first = records[0]["job"]
    lines = [
        f"Smooth k-NN statistic (lower is better; ours has its own settings, so only ranks compare with the paper's, "
        f"in brackets). {first['rows']:,} rows, a tenth of them with labels; {first['restarts']} restarts from random "
        f"weights, {first['steps']:,} steps (LIN a tenth of the joint ones). Cohorts: y = 0 and 1; y = ∓3.5.",
        "",
        "| world | method | p(x) | first cohort | second cohort |",
        "|---|---|---|---|---|",
    ]
    for world, methods in PAPER.items():
        for method, paper in methods.items():
            own = [_of(records, world, method, name) for name in ("x", "cohort1", "cohort2")]
            if own[0]:
                cells = [f"{shown(values)} ({theirs:.3f})" for values, theirs in zip(own, paper, strict=True)]
                lines.append(f"| {world} | {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the statistics."""
    titles = {"x": "p(x)", "cohort1": "first cohort", "cohort2": "second cohort"}
    dots = []
    for world, methods in PAPER.items():
        for name, title in titles.items():
            for method in methods:
                own = _of(records, world, method, name)
                if own:
                    dots.append((f"{world} · {title} · {method}", *over_seeds(own), None))
    dot_rows(path, dots, "smooth k-NN statistic", shares=False)


STUDY = Study(
    name="semi-toys",
    title="Realistic rows or realistic counterfactuals?",
    paper="P2, Tables 3 and 4, Figure 2",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
)
