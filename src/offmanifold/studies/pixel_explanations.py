"""Do explanations point at the pixels that are wrong? Patches planted in normal images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

from offmanifold.data import benchmarks
from offmanifold.detectors import AE, VAE, OutlierDetector
from offmanifold.measures.detection import auroc
from offmanifold.report.figures import dot_rows
from offmanifold.studies.core import Job, Record, Study, over_seeds, shown

Array = npt.NDArray[Any]
Scores = Callable[[Array], Array]
# Scale → images to learn from, images to plant in, and data sets beside scikit-learn's digits.
SIZES: dict[str, tuple[int, int, tuple[str, ...]]] = {
    "smoke": (100, 20, ()),
    "laptop": (2000, 200, ("mnist", "fashion_mnist")),
    "paper": (50_000, 1000, ("mnist", "fashion_mnist")),
}
DETECTORS = {"AE": AE, "VAE": VAE}
KINDS = ("exchanged", "inverted")
ROWS = ("chance", "z-score", *DETECTORS)
# A patch's side, as a part of the image's, and what it has to change of a pixel on average (grey levels).
PART, LEAST = 4, 0.1


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a data set and seed."""
    own = {"steps": 3, "hidden": [16]} if scale == "smoke" else {"network": "mlp"}
    return [
        {"name": f"{data}-seed{seed}", "data": data, "scale": scale, "seed": seed, "parameters": own}
        for data in ("digits", *SIZES[scale][2])
    ]


def _images(data: str, scale: str, seed: int) -> tuple[Array, Array]:
    """Return images to learn from and others to plant in, in [0, 1]."""
    learned, planted, _ = SIZES[scale]
    if data == "digits":
        images = load_digits().images / 16
        images = images[np.random.default_rng(seed).permutation(len(images))]
        return images[: len(images) // 2][:learned], images[len(images) // 2 :][:planted]
    found = benchmarks.images(data)
    order = np.random.default_rng(seed).permutation(len(found.train))[:learned]
    return found.train[order] / 255, found.test[:planted] / 255


def _planted(kind: str, images: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Return images with one wrong patch each, and where it is: another image's there, or black for white.

    Places where that changes next to nothing are drawn again, and images without any other are left out.
    """
    height, width = images.shape[1:]
    high, wide = max(2, height // PART), max(2, width // PART)
    others = images[rng.permutation(len(images))]
    made, masks = [], []
    for image, other in zip(images, others, strict=True):
        for _ in range(50):
            top, left = rng.integers(height - high + 1), rng.integers(width - wide + 1)
            patch = np.s_[top : top + high, left : left + wide]
            new = image.copy()
            new[patch] = other[patch] if kind == "exchanged" else 1 - image[patch]
            if np.abs(new - image)[patch].mean() >= LEAST:
                mask = np.zeros_like(image, dtype=bool)
                mask[patch] = True
                made.append(new)
                masks.append(mask)
                break
    return np.array(made), np.array(masks)


def _by_z_score(train: Array, images: Array) -> Array:
    distances: Array = np.abs(images - train.mean(0)) / np.maximum(train.std(0), 1 / 255)
    return -distances


def _contributions(detector: OutlierDetector, images: Array) -> Array:
    return detector.explain(images).contributions


def _ways(train: Array, job: Job) -> dict[str, Scores]:
    """Return by name what gives each pixel a number; the lowest is of the pixel that is called wrong."""
    fitted = {
        name: cls(random_state=job["seed"], verbose=False, **job["parameters"]).fit(train)
        for name, cls in DETECTORS.items()
    }
    return {
        "z-score": partial(_by_z_score, train),
        **{name: partial(_contributions, detector) for name, detector in fitted.items()},
    }


def run(job: Job) -> dict[str, Any]:
    """Plant, explain, and measure how often the pixel named first is wrong, and how well pixels are told apart."""
    train, normal = _images(job["data"], job["scale"], job["seed"])
    ways = _ways(train, job)
    rng = np.random.default_rng(job["seed"])
    found: dict[str, dict[str, dict[str, float]]] = {}
    for kind in KINDS:
        images, masks = _planted(kind, normal, rng)
        found[kind] = {"chance": {"first": float(masks.mean()), "pixels": 0.5}}
        for name, way in ways.items():
            maps = way(images).reshape(len(images), -1)
            flat = masks.reshape(len(masks), -1)
            first = flat[np.arange(len(flat)), maps.argmin(1)].mean()
            pixels = np.mean([auroc(own[~mask], own[mask]).value for own, mask in zip(maps, flat, strict=True)])
            found[kind][name] = {"first": float(first), "pixels": float(pixels)}
    return {"found": found}


def _over(records: list[Record], data: str, kind: str, row: str, measure: str) -> list[float]:
    return [r["metrics"]["found"][kind][row][measure] for r in records if r["job"]["data"] == data]


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    lines = [
        "Patches of a quarter of the image's side, another image's at the same place or black for white. First: how "
        "often the pixel named first lies in the patch. AUROC: how well an image's numbers tell its wrong pixels from "
        "the others. z-score: the pixel farthest from its mean; `AE`, `VAE`: what `explain` says that a pixel adds to "
        "the score. Mean over seeds with Student's 95 % interval where there are several.",
        "",
        "| images | patch | measure | " + " | ".join(ROWS) + " | seeds |",
        "|---" * (len(ROWS) + 4) + "|",
    ]
    for data in dict.fromkeys(record["job"]["data"] for record in records):
        for kind in KINDS:
            for measure, name in (("first", "first"), ("pixels", "AUROC")):
                values = [_over(records, data, kind, row, measure) for row in ROWS]
                cells = [shown(own, share=True) for own in values]
                lines.append(f"| {data} | {kind} | {name} | {' | '.join(cells)} | {len(values[0])} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw how often the pixel named first is wrong."""
    dots = [
        (f"{data} · {kind} · {row}", *over_seeds(_over(records, data, kind, row, "first")), None)
        for data in dict.fromkeys(record["job"]["data"] for record in records)
        for kind in KINDS
        for row in ROWS
    ]
    dot_rows(path, dots, "how often the pixel named first lies in the patch", shares=False)


STUDY = Study(
    name="pixel-explanations",
    title="Do explanations point at the wrong pixels?",
    paper="no paper's",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
    detectors=lambda job: [cls(**job["parameters"]) for cls in DETECTORS.values()],
)
