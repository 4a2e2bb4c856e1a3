"""P2 Table 2 and appendix F: how many latents a bound asks for, what they cost in rate, and what they buy."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offmanifold.data.worlds import WORLDS
from offmanifold.measures.information import kraskov_with_each
from offmanifold.measures.latents import ACTIVE, averaged_kl
from offmanifold.report.figures import ACCENT, NORMAL, OUTLIER, new_figure, write_figure
from offmanifold.studies import toy_vaes
from offmanifold.studies.core import Job, Record, Study, over_seeds, shown

LATENTS = (1, 2, 3)
METHODS = ("VAE", "IWAE")
# World → method → (−bound, mean information) for one, two and three latents.
PAPER = {
    "figure-8-5d": {
        "VAE": ((-0.127, 2.419), (-0.260, 1.816), (-0.234, 1.296)),
        "IWAE": ((-0.388, 2.159), (-0.364, 1.910), (-0.351, 1.605)),
    },
    "clusters-5d": {
        "VAE": ((4.433, 1.530), (4.385, 1.425), (4.377, 1.077)),
        "IWAE": ((4.287, 1.269), (4.298, 1.321), (4.295, 1.135)),
    },
}
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
        for world in PAPER
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
    codes = mean + std * rng.standard_normal(mean.shape)
    true_codes = toy_vaes.origins(world, seed, job["rows"])
    return {
        "objective": losses.tolist(),
        "from_truth": from_truth[best],
        "choosing": float(losses[best]),
        "loss": float(toy_vaes.objectives(model, torch.from_numpy(test).float(), method)[best]),
        "rate": float(kl.sum()),
        "kraskov": float(kraskov_with_each(test, codes).mean()),
        "active": int((kl > ACTIVE).sum()),
        "error": float(((test - again) ** 2).mean()),
        "error_to_truth": float(((world.decode(true_codes) - again) ** 2).mean()),
        "variance": float(toy_vaes.variance(model, best).mean()),
        "entropy": world.entropy(len(test), rng).value,
        "information": world.information(len(test), rng).value,
        "kraskov_of_truth": float(kraskov_with_each(test, true_codes).mean()),
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

    def difference(self, name: str) -> float:
        """Return a metric at the chosen number less the same at the true one."""
        return float(self.metrics[self.chosen][name] - self.metrics[TRUE][name])


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
        "paper's in brackets; rate, KL(q(z|x) ‖ p) (the truth's is I(x; z)); a latent's mean information about x by "
        "Kraskov's estimate, the paper's in brackets (it reads low in five dimensions: see the truth's); how many "
        f"latents have more than {ACTIVE} nats of rate, data set by data set; squared error per dimension of "
        "decode(encode(x)) against x, and against x without its noise. Mean over data sets with Student's 95 % "
        "interval where there are several.",
        "",
        "| world | method | latents | chosen | −bound, nats | rate, nats | mean I(x; z_i) | active | error "
        "| error without noise | σ² |",
        "|---" * 11 + "|",
    ]
    every = choices(records)
    for world, methods in PAPER.items():
        truth = [record["metrics"] for record in records if record["job"]["world"] == world]
        if truth:
            entropy, rate, kraskov = (
                float(np.mean([metrics[name] for metrics in truth]))
                for name in ("entropy", "information", "kraskov_of_truth")
            )
            lines.append(
                f"| {world} | truth | {TRUE} | | {entropy:.3f} | {rate:.3f} | {kraskov:.3f} | {TRUE} | | | "
                f"{WORLDS[world].noise_variance} |"
            )
        for method, paper in methods.items():
            own = [choice for choice in every if (choice.world, choice.method) == (world, method)]
            for latents in LATENTS if own else ():
                found = [choice.metrics[latents] for choice in own]
                names = ("loss", "rate", "kraskov", "error", "error_to_truth", "variance")
                cells = [shown([metrics[name] for metrics in found]) for name in names]
                for place, theirs in zip((0, 2), paper[latents - 1], strict=True):
                    cells[place] += f" ({theirs:.3f})"
                cells.insert(3, ", ".join(str(metrics["active"]) for metrics in found))
                chosen = sum(choice.chosen == latents for choice in own)
                lines.append(f"| {world} | {method} | {latents} | {chosen} of {len(own)} | {' | '.join(cells)} |")
    lines += [
        "",
        f"The same rows' figures at the chosen number of latents less those at the truth's {TRUE}:",
        "",
        "| world | method | chosen | −bound, nats | rate, nats | error | error without noise | σ² |",
        "|---" * 8 + "|",
    ]
    for world in PAPER:
        for method in METHODS:
            own = [choice for choice in every if (choice.world, choice.method) == (world, method)]
            if own:
                cells = [
                    shown([choice.difference(name) for choice in own])
                    for name in ("loss", "rate", "error", "error_to_truth", "variance")
                ]
                chosen_ones = ", ".join(str(choice.chosen) for choice in own)
                lines.append(f"| {world} | {method} | {chosen_ones} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the bound and the rate over the number of latents, and what the truth has."""
    every = choices(records)
    drawing = new_figure(8, 5.5)
    quantities = {"loss": ("minus the bound, nats", "entropy"), "rate": ("rate, nats", "information")}
    panels = drawing.subplots(len(quantities), len(PAPER), sharex=True, squeeze=False)
    for row, (name, (label, ideal)) in zip(panels, quantities.items(), strict=True):
        for axes, world in zip(row, PAPER, strict=True):
            truth = [record["metrics"][ideal] for record in records if record["job"]["world"] == world]
            if truth:
                axes.axhline(np.mean(truth), color=ACCENT, linestyle="--", label="truth")
            for shift, method, colour in ((-0.05, "VAE", OUTLIER), (0.05, "IWAE", NORMAL)):
                own = [choice.metrics for choice in every if (choice.world, choice.method) == (world, method)]
                if own:
                    found = np.array([over_seeds([m[latents][name] for m in own]) for latents in LATENTS])
                    reach = np.abs(found[:, 1:] - found[:, :1]).T
                    places = np.array(LATENTS) + shift
                    axes.errorbar(places, found[:, 0], reach, fmt="o-", color=colour, capsize=3, label=method)
            axes.set_xticks(LATENTS)
            axes.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(label)
    for axes, world in zip(panels[0], PAPER, strict=True):
        axes.set_title(world, fontsize=10)
    for axes in panels[1]:
        axes.set_xlabel("latents")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    drawing.legend(handles, labels, frameon=False, ncols=3, loc="outside upper center")
    write_figure(drawing, path)


STUDY = Study(
    name="latent-count",
    title="How many latents does a bound ask for, and what do they cost?",
    paper="P2, Table 2 and appendix F",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
)
