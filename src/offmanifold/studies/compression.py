"""P2, appendix F: what the number of latents that a bound asks for costs in rate, and what it buys."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offmanifold.data.worlds import WORLDS
from offmanifold.measures.latents import ACTIVE, averaged_kl
from offmanifold.report.figures import ACCENT, NORMAL, OUTLIER, new_figure, write_figure
from offmanifold.studies import toy_vaes
from offmanifold.studies.core import Job, Record, Study, over_seeds, shown
from offmanifold.studies.latent_count import LATENTS, METHODS
from offmanifold.studies.latent_count import PAPER as BOUNDS

# Scale → rows (training, choosing, test), steps, restarts from the truth and as many from random weights, weights in
# IWAE's bound. P2: 5 000 steps, 5 restarts, S up to 20.
SIZES = {
    "smoke": ((200, 50, 50), 3, 1, 3),
    "laptop": ((5000, 5000, 5000), 2500, 2, 5),
    "paper": ((5000, 2000, 2000), 5000, 5, 20),
}
TRUE = 1


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a world, method and number of latents; a seed is a data set."""
    rows, steps, restarts, weights = SIZES[scale]
    return [
        {
            "name": f"{world}-{method.lower()}-k{latents}-seed{seed}",
            "world": world,
            "method": method,
            "latents": latents,
            "seed": seed,
            "rows": list(rows),
            "steps": steps,
            "restarts": restarts,
            "weights": weights,
        }
        for world in BOUNDS
        for method in METHODS
        for latents in LATENTS
    ]


def run(job: Job) -> dict[str, Any]:
    """Train with σ² learned for each dimension, from the truth and from random weights whatever the latents.

    Latents beyond the truth's begin without a say, so that no number of latents can do worse for want of a start.
    """
    world, seed = WORLDS[job["world"]], job["seed"]
    method = toy_vaes.Method(job["method"], job["weights"] if job["method"] == "IWAE" else 1, schedule="cosine")
    from_truth = [i < job["restarts"] for i in range(2 * job["restarts"])]
    model, best, losses, _, test = toy_vaes.trained(
        world,
        job["latents"],
        method,
        seed=seed,
        sizes=job["rows"],
        steps=job["steps"],
        from_truth=from_truth,
        learned=True,
    )
    mean, std = toy_vaes.posterior(model, best, test)
    kl = averaged_kl(mean, std)
    again, rng = toy_vaes.decode(model, best, mean), np.random.default_rng(seed)
    noiseless = toy_vaes.noiseless(world, seed, job["rows"])
    return {
        "objective": losses.tolist(),
        "from_truth": from_truth[best],
        "choosing": float(losses[best]),
        "loss": float(toy_vaes.objectives(model, torch.from_numpy(test).float(), method)[best]),
        "rate": float(kl.sum()),
        "active": int((kl > ACTIVE).sum()),
        "error": float(((test - again) ** 2).mean()),
        "error_to_truth": float(((noiseless - again) ** 2).mean()),
        "variance": float(toy_vaes.variance(model, best).mean()),
        "entropy": world.entropy(len(test), rng).value,
        "information": world.information(len(test), rng).value,
    }


@dataclasses.dataclass(frozen=True)
class Choice:
    """What one data set's bounds ask for: the number of latents with the best bound on rows to choose by."""

    world: str
    method: str
    metrics: dict[int, dict[str, Any]]

    @property
    def chosen(self) -> int:
        """K."""
        return min(self.metrics, key=lambda latents: self.metrics[latents]["choosing"])


def choices(records: list[Record]) -> list[Choice]:
    """Return the choices of each world, method and data set that has a result for every number of latents."""
    found: dict[tuple[str, str, int], dict[int, dict[str, Any]]] = {}
    for record in records:
        job = record["job"]
        found.setdefault((job["world"], job["method"], job["seed"]), {})[job["latents"]] = record["metrics"]
    return [
        Choice(world, method, metrics) for (world, method, _), metrics in found.items() if set(metrics) == set(LATENTS)
    ]


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    first = records[0]["job"]
    lines = [
        f"σ² learned for each dimension; for each number of latents {first['restarts']} restarts from the truth and "
        f"{first['restarts']} from random weights, {first['steps']:,} steps, IWAE with {first['weights']} weights. "
        "Chosen: in how many data sets its bound on rows to choose by is the best. On test rows: minus the bound, the "
        "paper's in brackets; rate, KL(q(z|x) ‖ p) (the truth's is I(x; z)); latents with more than "
        f"{ACTIVE} nats of it; squared error per dimension of decode(encode(x)) against x, and against x without its "
        "noise. Mean over data sets with Student's 95 % interval where there are several.",
        "",
        "| world | method | latents | chosen | −bound, nats | rate, nats | active | error | error without noise | σ² |",
        "|---" * 10 + "|",
    ]
    every = choices(records)
    for world, methods in BOUNDS.items():
        truth = [record["metrics"] for record in records if record["job"]["world"] == world]
        if truth:
            entropy, rate = (float(np.mean([m[name] for m in truth])) for name in ("entropy", "information"))
            lines.append(
                f"| {world} | truth | {TRUE} | | {entropy:.3f} | {rate:.3f} | {TRUE} | | | "
                f"{WORLDS[world].noise_variance} |"
            )
        for method, paper in methods.items():
            own = [choice for choice in every if (choice.world, choice.method) == (world, method)]
            for latents in LATENTS if own else ():
                found = [choice.metrics[latents] for choice in own]
                names = ("loss", "rate", "active", "error", "error_to_truth", "variance")
                cells = [shown([float(metrics[name]) for metrics in found]) for name in names]
                cells[0] += f" ({paper[latents - 1][0]:.3f})"
                chosen = sum(choice.chosen == latents for choice in own)
                lines.append(f"| {world} | {method} | {latents} | {chosen} of {len(own)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the bound over the rate, a line a method through its numbers of latents."""
    every = choices(records)
    drawing = new_figure(9, 3.8)
    for axes, world in zip(drawing.subplots(1, len(BOUNDS)), BOUNDS, strict=True):
        truth = [record["metrics"] for record in records if record["job"]["world"] == world]
        if truth:
            rate, entropy = (np.mean([m[name] for m in truth]) for name in ("information", "entropy"))
            axes.plot(rate, entropy, "*", color=ACCENT, markersize=12, label="truth")
        for method, colour in zip(METHODS, (OUTLIER, NORMAL), strict=True):
            own = [choice.metrics for choice in every if (choice.world, choice.method) == (world, method)]
            if not own:
                continue
            rates, losses = (
                np.array([over_seeds([m[latents][name] for m in own]) for latents in LATENTS])
                for name in ("rate", "loss")
            )
            axes.plot(rates[:, 0], losses[:, 0], "o-", color=colour, label=method)
            for latents, place in zip(LATENTS, zip(rates[:, 0], losses[:, 0], strict=True), strict=True):
                axes.annotate(f"K = {latents}", place, xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.set_title(world, fontsize=10)
        axes.set_xlabel("rate KL(q ‖ p), nats")
        axes.set_ylabel("minus the bound on test rows, nats")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    write_figure(drawing, path)


STUDY = Study(
    name="compression",
    title="What does the number of latents a bound asks for cost?",
    paper="P2, appendix F and Table 2",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
)
