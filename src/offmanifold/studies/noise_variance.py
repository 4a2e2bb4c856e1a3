"""P2 Theorem 2: the noise variance that the ELBO asks for, at known decoders and at learned ones."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np

from offmanifold.data.worlds import WORLDS, spiral_dots
from offmanifold.measures.posterior import best_gaussian, expected_squares, posterior_mismatch
from offmanifold.report.figures import dot_rows
from offmanifold.studies import toy_vaes
from offmanifold.studies.core import Job, Record, Study, over_seeds, shown

WORLD = WORLDS["spiral-dots"]
# Row → how much of the way a given decoder goes from the truth's dots to a spiral of even speed.
GIVEN = {
    "the true decoder": 0.0,
    "2 % flattened": 0.02,
    "5 % flattened": 0.05,
    "10 % flattened": 0.1,
    "20 % flattened": 0.2,
}
# Row → whether σ² is learned, and the paper's estimate.
NETWORKS = {"learned, σ² fixed": (False, "0.014 ± 0.001"), "learned with σ²": (True, "0.020 ± 0.003")}
# Scale → rows (training, choosing, test), steps of each phase that goes to the truth, joint steps, restarts from there
# and as many from random weights, given decoders, and rows for which the best Gaussian is sought. P2: 5 000, 2 000 and
# 2 000 rows, 5 000 steps, 5 and 5 restarts.
SIZES = {
    "smoke": ((200, 50, 50), 3, 3, 1, 1, 10),
    "laptop": ((5000, 2000, 2000), 8000, 30_000, 2, len(GIVEN), 500),
    "paper": ((5000, 2000, 2000), 20_000, 100_000, 5, len(GIVEN), 2000),
}


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job for each given decoder, one for networks with σ² fixed, and one for those that learn it."""
    rows, steps, joint_steps, restarts, given, sought = SIZES[scale]
    shared = {"seed": seed, "rows": list(rows)}
    known: list[Job] = [
        {"name": f"given{share:g}-seed{seed}", "row": row, "flattened": share, "sought": sought, **shared}
        for row, share in list(GIVEN.items())[:given]
    ]
    networks: list[Job] = [
        {
            "name": f"{'learned' if learned else 'fixed'}-seed{seed}",
            "row": row,
            "learned": learned,
            "steps": steps,
            "joint_steps": joint_steps,
            "restarts": restarts,
            **shared,
        }
        for row, (learned, _) in NETWORKS.items()
    ]
    return known + networks


def run(job: Job) -> dict[str, Any]:
    """Return the ELBO and the variance that maximises it (Eq. 5) for a row of the table."""
    return _given(job) if job["row"] in GIVEN else _learned(job)


def _given(job: Job) -> dict[str, Any]:
    """The best Gaussian q(z | x) for each row, whatever an encoder could do."""
    rows = toy_vaes.data(WORLD, job["seed"], job["rows"])[1][: job["sought"]].double().numpy()
    world = dataclasses.replace(WORLD, decoder=functools.partial(spiral_dots, flattened=job["flattened"]))
    mean, std = best_gaussian(rows, world.decode, world.noise_variance)
    mismatch = posterior_mismatch(mean, std, rows, world.decode, world.noise_variance)
    errors = expected_squares(mean, std, rows, world.decode, np.ones(world.dimension))
    return {
        "estimate": float(errors.mean()) / world.dimension,
        "elbo": float((world.log_prob(rows) - mismatch).mean()),
        "mismatch": float(mismatch.mean()),
    }


def _learned(job: Job) -> dict[str, Any]:
    """A stack of networks, and the restart with the best ELBO."""
    method = toy_vaes.Method("VAE", schedule="cosine")
    from_truth = [i < job["restarts"] for i in range(2 * job["restarts"])]
    model, best, losses, train, _ = toy_vaes.trained(
        WORLD,
        1,
        method,
        seed=job["seed"],
        sizes=job["rows"],
        steps=job["steps"],
        joint_steps=job["joint_steps"],
        from_truth=from_truth,
        learned=job["learned"],
        pairs=True,
    )
    return {
        "objective": losses.tolist(),
        "from_truth": from_truth[best],
        "estimate": float(toy_vaes.best_variance(model, best, train).mean()),
        "learned": float(toy_vaes.variance(model, best).mean()),
        "elbo": float(-losses[best]),
        "elbo_of_training_rows": float(-toy_vaes.objectives(model, train, method)[best]),
    }


def _of(records: list[Record], row: str, name: str) -> list[float]:
    return [record["metrics"][name] for record in records if record["job"]["row"] == row]


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    lines = [
        f"Spiral Dots, σ² = {WORLD.noise_variance}: the variance that maximises the ELBO given decoder and q (P2 Eq. "
        "5), and the ELBO of rows that were not trained on. Given decoders have the best Gaussian q for each row, "
        "whatever an encoder could do; they go a part of the way from the truth's dots to a spiral of even speed. "
        "Networks: the restart with the best ELBO. Mean over data sets with Student's 95 % interval where there are "
        "several.",
        "",
        "| decoder | estimate of σ² | P2, §2.2 | ELBO, nats | of training rows | KL(q ‖ p(z\\|x)), nats "
        "| from the truth |",
        "|---" * 7 + "|",
    ]
    for row in GIVEN:
        if _of(records, row, "estimate"):
            estimate, elbo, mismatch = (shown(_of(records, row, name)) for name in ("estimate", "elbo", "mismatch"))
            lines.append(f"| {row} | {estimate} | – | {elbo} | – | {mismatch} | – |")
    for row, (_, paper) in NETWORKS.items():
        if own := _of(records, row, "estimate"):
            truth = f"{sum(_of(records, row, 'from_truth')):.0f} of {len(own)}"
            elbo, trained = (shown(_of(records, row, name)) for name in ("elbo", "elbo_of_training_rows"))
            lines.append(f"| {row} | {shown(own)} | {paper} | {elbo} | {trained} | – | {truth} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the estimates."""
    paper = dict.fromkeys(GIVEN) | {row: float(theirs.split()[0]) for row, (_, theirs) in NETWORKS.items()}
    dots = [(row, *over_seeds(own), theirs) for row, theirs in paper.items() if (own := _of(records, row, "estimate"))]
    dot_rows(path, dots, f"estimated σ² (truth {WORLD.noise_variance})", shares=False)


STUDY = Study(
    name="noise-variance",
    title="Does the ELBO find the noise?",
    paper="P2, Theorem 2 and §2.2",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
)
