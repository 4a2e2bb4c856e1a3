"""P3, Table 4: which detector, trained on MNIST, refuses images of other kinds?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from offmanifold.data import benchmarks
from offmanifold.data import outliers as synthetic
from offmanifold.detectors import DETECTORS
from offmanifold.measures.detection import auroc
from offmanifold.report.figures import dot_rows
from offmanifold.studies import mnist_holdout
from offmanifold.studies.core import Job, Record, Study, baseline_scores, over_seeds, shown, slug

KINDS = ("ConstantGray", "Half", "Chimera", "Omniglot", "Noise", "Fashion")
MADE = {"ConstantGray": "constant", "Half": "erased", "Noise": "noise"}
# Training may be watched by families of outliers that are not reported here.
WATCH = ("patches", "inverted")
ROWS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "kNN": (None, {}),
    "PCA": (None, {}),
    "AE": ("ae", {"latent": "sphere"}),
    "VAE(L)": ("vae", {"gamma": 1.0, "score_by": "elbo"}),
    "IGEBM": ("igebm", {"watch": WATCH}),
    "NAE-OMI": ("nae", {"negatives": "omi", "watch": WATCH}),
}
PAPER: dict[str, tuple[float, ...]] = {
    "AE": (0.934, 0.523, 0.761, 0.885, 1.0),
    "IGEBM": (1.0, 0.986, 0.948, 0.946, 1.0),
    "NAE-OMI": (1.0, 0.999, 0.992, 0.995, 1.0),
}
Pixels = npt.NDArray[np.uint8]


def outliers(kind: str, images: Pixels, labels: npt.NDArray[Any], n: int) -> Pixels:
    """Make or load ``n`` images of a kind (P3, appendix D.1).

    Half: the upper or lower half zero, by the index's parity. Chimera: the upper half of one digit over the lower half
    of another class, rows 11 to 16 zero.
    """
    if kind in MADE:
        made = synthetic.make(MADE[kind], torch.from_numpy(images[:n, None] / 255), torch.Generator().manual_seed(0))
        return (made[:, 0] * 255).round().to(torch.uint8).numpy()
    rng = np.random.default_rng(0)
    if kind == "Omniglot":
        characters = benchmarks.images("omniglot28").test
        return characters[rng.permutation(len(characters))[:n]]
    if kind == "Fashion":
        return benchmarks.images("fashion_mnist").test[:n]
    chimeras = images[:n].copy()
    for i in range(n):
        partner = rng.choice(np.flatnonzero(labels != labels[i]))
        chimeras[i, 14:] = images[partner, 14:]
    chimeras[:, 11:17] = 0
    return chimeras


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a row and seed: the hold-out study's models, trained on all ten digits."""
    _, images, test = mnist_holdout.SIZES[scale]
    made: list[Job] = []
    for row, (key, own) in ROWS.items():
        parameters = {} if key is None else mnist_holdout.parameters_of(key, scale, own)
        made.append(
            {"name": f"{slug(row)}-seed{seed}", "row": row, "detector": key, "seed": seed, "train_images": images,
             "test_images": test, "parameters": parameters}
        )  # fmt: skip
    return made


def run(job: Job) -> dict[str, Any]:
    """Train on MNIST, score its test images against each kind."""
    mnist = benchmarks.images("mnist")
    train, n = mnist.train[: job["train_images"]], job["test_images"]
    normal = mnist.test[:n]
    # Halves and chimeras are made of other test images than the normal ones, where there are enough.
    rest = slice(n, None) if 2 * n <= len(mnist.test) else slice(None)
    sets = {kind: outliers(kind, mnist.test[rest], mnist.test_labels[rest], n) for kind in KINDS}
    metrics: dict[str, Any] = {}
    if job["detector"] is None:
        everything = np.concatenate([normal, *sets.values()])
        scores, _ = baseline_scores(job["row"], train, everything, everything[:1])
    else:
        detector = DETECTORS[job["detector"]](**job["parameters"], random_state=job["seed"], verbose=False)
        detector.fit(train)
        scores = detector.score_samples(np.concatenate([normal, *sets.values()]))
        metrics["training"] = detector.training_summary()
    parts = np.split(scores, np.cumsum([len(normal), *(len(images) for images in sets.values())])[:-1])
    metrics["auroc"] = {kind: auroc(parts[0], part).to_json() for kind, part in zip(sets, parts[1:], strict=True)}
    metrics["arrays"] = {name: part.astype(np.float32) for name, part in zip(("normal", *sets), parts, strict=True)}
    return metrics


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    first = records[0]["job"]
    lines = [
        f"AUROC, trained on {first['train_images']:,} MNIST images; {first['test_images']:,} images of each kind at "
        "most. Mean over seeds with Student's 95 % interval where there are several; P3's Table 4 in brackets. NAE and "
        f"IGEBM were watched by {' and '.join(WATCH)} images alone.",
        "",
        "| model | " + " | ".join(KINDS) + " | seeds |",
        "|---" * (len(KINDS) + 2) + "|",
    ]
    for row in ROWS:
        own = [r for r in records if r["job"]["row"] == row]
        if not own:
            continue
        cells = []
        for index, kind in enumerate(KINDS):
            cell = shown([r["metrics"]["auroc"][kind]["value"] for r in own])
            paper = PAPER.get(row, ())
            cells.append(cell + (f" ({paper[index]:.3f})" if index < len(paper) else ""))
        lines.append(f"| {row} | {' | '.join(cells)} | {len(own)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the table."""
    rows = []
    for kind_index, kind in enumerate(KINDS):
        for row in ("AE", "NAE-OMI"):
            values = [r["metrics"]["auroc"][kind]["value"] for r in records if r["job"]["row"] == row]
            if values:
                paper = PAPER[row]
                mean, low, high = over_seeds(values)
                rows.append(
                    (f"{kind} · {row}", mean, low, high, paper[kind_index] if kind_index < len(paper) else None)
                )
    dot_rows(path, rows, "AUROC, MNIST (normal) against other images")


STUDY = Study(
    name="mnist-ood",
    title="Which detector, trained on MNIST, refuses images of other kinds?",
    paper="P3, Table 4",
    seeds={"smoke": (0,), "laptop": (0, 1, 2), "paper": (0, 1, 2)},
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
)
