"""P2, appendix K: does it help a classifier under attack to project rows onto a learned manifold?"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from offmanifold.data.worlds import WORLDS
from offmanifold.measures.robustness import Norm, pgd
from offmanifold.networks.stacked import StackedMLP
from offmanifold.report.figures import new_figure, write_figure
from offmanifold.studies import toy_vaes
from offmanifold.studies.core import Job, Record, Study, arrays_of, shown
from offmanifold.training.loop import train
from offmanifold.training.phases import Metrics, Optimizer, ParameterGroup, Phase, Update

Array = npt.NDArray[Any]
Projection = Callable[[Tensor], Tensor]
WORLD = WORLDS["figure-8-5d"]
# Scale → rows (training, choosing, test), rows with labels, attacked rows, steps of the VAEs and of the classifier,
# restarts from the truth and as many from random weights, weights in IWAE's bound, steps of an attack.
SIZES = {
    "smoke": ((200, 50, 50), 50, 20, 3, 20, 1, 3, 3),
    "laptop": ((5000, 2000, 2000), 100, 2000, 2500, 1000, 2, 5, 40),
    "paper": ((5000, 2000, 10_000), 100, 10_000, 5000, 1000, 5, 20, 200),
}
# Of the balls rows are attacked in; a deviation of the noise is 0.14.
RADII = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
SHOWN = 0.3
# Reaches as far along a diagonal as the other does in any direction.
LARGEST = SHOWN / WORLD.dimension**0.5


class Defence(NamedTuple):
    """What rows go through before they are classified.

    Attributes
    ----------
    method : {"none", "truth", "PCA", "VAE", "IWAE"}
        The nearest point of the true curve; principal components; decode(encode(x)) of a trained model.
    latents : int
        Or components.
    variance : float, optional
        The model's σ², as a factor on the true one; learned if not given.
    """

    method: str
    latents: int = 0
    variance: float | None = None


DEFENCES = {
    "none": Defence("none"),
    "the true curve": Defence("truth", 1),
    "PCA, 2 components": Defence("PCA", 2),
    "VAE, 1 latent": Defence("VAE", 1),
    "IWAE, 1 latent": Defence("IWAE", 1),
    "VAE, 2 latents": Defence("VAE", 2),
    "VAE, 3 latents": Defence("VAE", 3),
    "VAE, 5 latents, σ² a hundredth": Defence("VAE", 5, 0.01),
}

COLOURS = {defence: f"C{index}" for index, defence in enumerate(DEFENCES)}


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a defence; a seed is a data set and a classifier."""
    rows, labelled, attacked, steps, classifier_steps, restarts, weights, attack_steps = SIZES[scale]
    return [
        {
            "name": f"defence{index}-seed{seed}",
            "defence": name,
            "seed": seed,
            "rows": list(rows),
            "labelled": labelled,
            "attacked": attacked,
            "steps": steps,
            "classifier_steps": classifier_steps,
            "restarts": restarts,
            "weights": weights,
            "attack_steps": attack_steps,
        }
        for index, name in enumerate(DEFENCES)
    ]


def classes(noiseless: Array) -> Array:
    """Return the class of points of the true curve: which of its two lobes they lie on."""
    return (noiseless[:, 0] > 0).astype(np.int64)


def classifier(rows: Tensor, labels: Array, *, steps: int, seed: int) -> Callable[[Tensor], Tensor]:
    """Train a classifier of two hidden layers; return its logits."""
    generator = torch.Generator().manual_seed(seed)
    network = StackedMLP((rows.shape[1], *toy_vaes.HIDDEN[:2], 2), [generator])
    pairs = torch.column_stack([rows, torch.from_numpy(labels)])

    def logits(batch: Tensor) -> Tensor:
        found: Tensor = network(batch[None])[0]
        return found

    def loss(batch: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        own = torch.nn.functional.cross_entropy(logits(batch[:, :-1]), batch[:, -1].long(), reduction="none")
        return own, {}

    update = Update((ParameterGroup.of("classifier", network),), loss, Optimizer(toy_vaes.RATE))
    train(
        network, [Phase("classifier", (update,), steps, toy_vaes.BATCH, keep="last", checks=1)], pairs, pairs, seed=seed
    )
    return logits


def projection(job: Job) -> Projection | None:
    """Return what a defence makes of rows, trained if need be; None for none."""
    defence, seed = DEFENCES[job["defence"]], job["seed"]
    if defence.method == "none":
        return None
    if defence.method == "truth":
        return lambda rows: torch.from_numpy(WORLD.nearest(rows.detach().numpy())[0]).to(rows)
    if defence.method == "PCA":
        first, second, last = job["rows"]
        pca = PCA(defence.latents).fit(toy_vaes.data(WORLD, seed, (first, second, last))[0].numpy())
        mean, axes = torch.from_numpy(pca.mean_), torch.from_numpy(pca.components_)
        return lambda rows: mean + (rows - mean) @ axes.T @ axes
    weights = job["weights"] if defence.method == "IWAE" else 1
    model, best, *_ = toy_vaes.trained(
        WORLD,
        defence.latents,
        toy_vaes.Method(defence.method, weights, schedule="cosine"),
        seed=seed,
        sizes=job["rows"],
        steps=job["steps"],
        from_truth=[i < job["restarts"] for i in range(2 * job["restarts"])],
        learned=defence.variance is None,
        noise_variance=WORLD.noise_variance * (defence.variance or 1.0),
    )
    model.requires_grad_(False)
    return lambda rows: toy_vaes.projected(model, best, rows)


def run(job: Job) -> dict[str, Any]:
    """Attack the classifier by itself and together with the projection, and see what it makes of the rows."""
    first, second, last = job["rows"]
    _, _, test = toy_vaes.data(WORLD, job["seed"], (first, second, last))
    drawn = WORLD.sample(job["labelled"], np.random.default_rng([job["seed"], 1]))
    logits = classifier(
        torch.from_numpy(drawn.x).float(),
        classes(WORLD.decode(drawn.z)),
        steps=job["classifier_steps"],
        seed=job["seed"],
    )
    project = projection(job)
    defended = logits if project is None else lambda rows: logits(project(rows))
    rows = torch.from_numpy(test[: job["attacked"]]).float()
    noiseless = WORLD.decode(toy_vaes.origins(WORLD, job["seed"], job["rows"])[: job["attacked"]])
    y = torch.from_numpy(classes(noiseless))

    def attacked(target: Projection, radius: float, norm: Norm = "l2") -> Tensor:
        return pgd(target, rows, y, radius=radius, norm=norm, steps=job["attack_steps"])

    @torch.no_grad()
    def right(moved: Tensor, labels: Tensor = y) -> Array:
        return np.asarray((defended(moved).argmax(1) == labels).numpy())

    blind = [attacked(logits, radius) for radius in RADII]
    withstood = np.stack([right(moved) for moved in blind])
    knowing = None
    if DEFENCES[job["defence"]].method != "truth":  # no gradient passes the search for the nearest point
        # A projection may hide its gradients: who knows of it still has the attack that does not.
        knowing = (withstood & [right(attacked(defended, radius)) for radius in RADII]).mean(1)
    with torch.no_grad():
        moved = blind[RADII.index(SHOWN)]
        landed, denoised = ((part if project is None else project(part)).numpy() for part in (moved, rows))
    return {
        "clean": float(right(rows).mean()),
        "blind": float(right(moved).mean()),
        "blind_linf": float(right(attacked(logits, LARGEST, "linf")).mean()),
        # P2's adversary fails where the true classifier, too, gives the moved row its new class.
        "true_class": float(right(moved, torch.from_numpy(classes(WORLD.nearest(moved.numpy())[0]))).mean()),
        "knowing": None if knowing is None else float(knowing[RADII.index(SHOWN)]),
        "off_curve": float(np.sqrt(((landed - WORLD.nearest(landed)[0]) ** 2).sum(1).mean())),
        "error": float(((denoised - noiseless) ** 2).mean()),
        "arrays": {"blind": withstood.mean(1)} | ({} if knowing is None else {"knowing": knowing}),
    }


def _of(records: list[Record], defence: str) -> list[Record]:
    return [record for record in records if record["job"]["defence"] == defence]


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    first = records[0]["job"]
    lines = [
        f"{WORLD.name}, two classes, the lobes of the curve; a classifier that learned from {first['labelled']} "
        f"labelled rows. Its accuracy on projected rows: as they are; moved by {SHOWN} in ℓ2, or by {LARGEST:.3f} in "
        f"ℓ∞, by an attack on the classifier ({first['attack_steps']} steps of PGD) that does not know of the "
        "projection; the former as P2 counts, by the true class of the place that a row was moved to; the worse of the "
        "former and of an attack through the projection. Off the curve: the attacked and projected rows' root mean "
        "square distance from the true curve. Error: of clean rows, projected, against those without noise, per "
        f"dimension (σ² = {WORLD.noise_variance}). Mean over data sets with Student's 95 % interval where there are "
        "several. The paper gives no numbers.",
        "",
        "| projection | clean | ℓ2 | ℓ∞ | ℓ2, true class | ℓ2, knowing | off the curve | error | seeds |",
        "|---" * 9 + "|",
    ]
    for defence in DEFENCES:
        own = [record["metrics"] for record in _of(records, defence)]
        if not own:
            continue
        cells = [
            shown([metrics[name] for metrics in own if metrics[name] is not None], share=True)
            for name in ("clean", "blind", "blind_linf", "true_class", "knowing")
        ]
        cells += [shown([metrics[name] for metrics in own]) for name in ("off_curve", "error")]
        lines.append(f"| {defence} | {' | '.join(cells)} | {len(own)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw accuracy over the attack's radius, for attacks that do not know of the projection and for those that do."""
    drawing = new_figure(9.5, 4)
    panels = drawing.subplots(1, 2, sharey=True)
    titles = {"blind": "the attack does not know of the projection", "knowing": "the attack knows of it"}
    for axes, (name, title) in zip(panels, titles.items(), strict=True):
        for defence, colour in COLOURS.items():
            curves = [arrays[name] for record in _of(records, defence) if name in (arrays := arrays_of(record))]
            if curves:
                axes.plot(RADII, np.mean(curves, 0), "o-", markersize=3, color=colour, label=defence)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("radius of the attack, ℓ2")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy after projection")
    drawing.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    write_figure(drawing, path)


STUDY = Study(
    name="projection-defence",
    title="Does projection onto a learned manifold defend a classifier?",
    paper="P2, appendix K",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
)
