"""P3, Tables 1 and 3: one digit is held out of training; which detector finds that it does not belong?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from offmanifold.data import benchmarks
from offmanifold.data.benchmarks import Pixels
from offmanifold.detectors import DETECTORS
from offmanifold.measures.detection import auroc
from offmanifold.report.figures import dot_rows
from offmanifold.studies.core import Job, Record, Study, baseline_scores, over_seeds, shown, slug, watched_by

# Scale → digits, training images, test images of each kind.
SIZES = {
    "smoke": ((1,), 200, 50),
    "laptop": ((1, 4, 7, 9), 20_000, 1_000),
    "paper": (tuple(range(10)), 50_000, 10_000),
}
# What the autoencoders share: P3's Conv28 on the sphere; laptop scale at half its width.
SHARED: dict[str, dict[str, Any]] = {
    "smoke": {"capacity": 0.1, "steps": 3, "batch_size": 32},
    "laptop": {"capacity": 0.5, "batch_size": 128},
    "paper": {"capacity": 1.0, "batch_size": 128},
}
# The plain ones; more steps make them reconstruct the held-out digit better still.
PLAIN: dict[str, dict[str, Any]] = {
    "smoke": {},
    "laptop": {"steps": 2500, "learning_rate": 1e-3, "optimizer": "adam", "schedule": "one-cycle"},
    "paper": {"steps": 39_100, "learning_rate": 1e-4, "schedule": "constant"},
}
NORMALISED: dict[str, dict[str, Any]] = {
    "smoke": {"pretraining_steps": 3, "visible_chain": (2, 10.0, 0.05), "latent_chain": (2, 0.2, 0.05)},
    "laptop": {
        "pretraining_steps": 5000,
        "pretraining_rate": 1e-3,
        "steps": 240,
        "updates_per_chain": 8,
        "learning_rate": 5e-5,
        "schedule": "one-cycle",
        "visible_chain": (15, 10.0, 0.05),
    },
    "paper": {"preset": "mnist"},
}
# P3 does not say how long; at paper scale as long as NAE's second phase, at laptop scale for about NAE's time.
ENERGY_BASED: dict[str, dict[str, Any]] = {"smoke": {}, "laptop": {"steps": 700}, "paper": {"steps": 19_550}}
# No paper's: at laptop scale as users have it by default.
DENOISER: dict[str, dict[str, Any]] = {
    "smoke": SHARED["smoke"],
    "laptop": {},
    "paper": {"steps": 10_000},
}
ROWS: dict[str, tuple[str | None, dict[str, Any]]] = {
    "kNN": (None, {}),
    "PCA": (None, {}),
    "AE": ("ae", {"latent": "sphere"}),
    "DAE": ("ae", {"latent": "sphere", "noise": 0.3}),
    "VAE(L)": ("vae", {"gamma": 1.0, "score_by": "elbo"}),
    "IGEBM": ("igebm", {}),
    "NAE-CD": ("nae", {"negatives": "cd"}),
    "NAE-PCD": ("nae", {"negatives": "pcd-restart"}),
    "NAE-OMI": ("nae", {"negatives": "omi"}),
    "MultiscaleDenoiser": ("multiscale-denoiser", {}),
}
# Read from the same run: the reconstruction term of the VAE's score.
BY_RECONSTRUCTION = {"VAE(R)": "VAE(L)"}
SHOWN = ("kNN", "PCA", "AE", "DAE", "VAE(R)", "VAE(L)", "IGEBM", "NAE-CD", "NAE-PCD", "NAE-OMI", "MultiscaleDenoiser")
# P3, Tables 1 and 3, digits 0 to 9.
PAPER = {
    "AE": (0.819, 0.131, 0.843, 0.734, 0.661, 0.755, 0.844, 0.542, 0.902, 0.537),
    "DAE": (0.769, 0.124, 0.872, 0.935, 0.884, 0.793, 0.865, 0.533, 0.910, 0.625),
    "VAE(R)": (0.954, 0.391, 0.978, 0.910, 0.860, 0.939, 0.916, 0.774, 0.946, 0.721),
    "VAE(L)": (0.967, 0.326, 0.976, 0.906, 0.798, 0.927, 0.928, 0.751, 0.935, 0.614),
    "IGEBM": (0.926, 0.401, 0.642, 0.644, 0.664, 0.752, 0.851, 0.572, 0.747, 0.522),
    "NAE-CD": (0.799, 0.098, 0.878, 0.769, 0.656, 0.806, 0.874, 0.537, 0.876, 0.500),
    "NAE-PCD": (0.745, 0.114, 0.879, 0.754, 0.690, 0.813, 0.872, 0.509, 0.902, 0.544),
    "NAE-OMI": (0.989, 0.919, 0.992, 0.949, 0.949, 0.978, 0.938, 0.975, 0.929, 0.934),
}


def parameters_of(key: str, scale: str, own: dict[str, Any]) -> dict[str, Any]:
    """Return a row's hyper-parameters: what all share, what its kind of detector adds, and its own."""
    if key == "multiscale-denoiser":
        return {**DENOISER[scale], "calibration_fraction": 0.05, **own}
    parameters = {**SHARED[scale], "network": "conv28", "calibration_fraction": 0.05, **own}
    if key == "igebm":
        return parameters | ENERGY_BASED[scale]
    parameters["latent_dim"] = 32
    if key in ("ae", "vae"):
        parameters |= PLAIN[scale]
    elif key == "nae":
        parameters |= NORMALISED[scale]
    return parameters


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a digit, row and seed."""
    digits, images, test = SIZES[scale]
    made: list[Job] = []
    for digit in digits:
        for row, (key, own) in ROWS.items():
            parameters = {} if key is None else parameters_of(key, scale, own)
            made.append(
                {"name": f"{slug(row)}-digit{digit}-seed{seed}", "row": row, "detector": key, "digit": digit,
                 "seed": seed, "train_images": images, "test_images": test, "parameters": parameters}
            )  # fmt: skip
    return made


def without(digit: int, images: int) -> tuple[Pixels, benchmarks.Images]:
    """Return at most ``images`` training images of the other digits, and MNIST itself.

    P3's split: the last 10 000 of the official training images are not trained on.
    """
    mnist = benchmarks.images("mnist")
    return mnist.train[:50_000][mnist.train_labels[:50_000] != digit][:images], mnist


def run(job: Job) -> dict[str, Any]:
    """Train without the digit, score the other digits' test images against it."""
    train, mnist = without(job["digit"], job["train_images"])
    normal = mnist.test[mnist.test_labels != job["digit"]][: job["test_images"]]
    odd = mnist.test[mnist.test_labels == job["digit"]][: job["test_images"]]
    metrics: dict[str, Any] = {}
    if job["detector"] is None:
        scores = baseline_scores(job["row"], train, normal, odd)
    else:
        detector = DETECTORS[job["detector"]](**job["parameters"], random_state=job["seed"], verbose=False)
        detector.fit(train)
        scores = detector.score_samples(normal), detector.score_samples(odd)
        metrics["training"] = detector.training_summary()
        if job["row"] in BY_RECONSTRUCTION.values():
            terms = (detector.score_terms(images)["reconstruction"] for images in (normal, odd))
            metrics["auroc_by_reconstruction"] = auroc(*terms).to_json()
    metrics["auroc"] = auroc(*scores).to_json()
    metrics["arrays"] = {"normal": scores[0].astype(np.float32), "outliers": scores[1].astype(np.float32)}
    return metrics


def _values(records: list[Record], row: str, digit: int) -> list[float]:
    trained, metric = (
        BY_RECONSTRUCTION.get(row, row),
        "auroc_by_reconstruction" if row in BY_RECONSTRUCTION else "auroc",
    )
    return [r["metrics"][metric]["value"] for r in records if r["job"]["row"] == trained and r["job"]["digit"] == digit]


def _means(records: list[Record], row: str, digits: list[int]) -> list[float]:
    """Return the mean over digits of each seed that has them all."""
    seeds = sorted({r["job"]["seed"] for r in records})
    means = []
    for seed in seeds:
        own = [r for r in records if r["job"]["seed"] == seed]
        values = [value for digit in digits for value in _values(own, row, digit)]
        if len(values) == len(digits):
            means.append(float(np.mean(values)))
    return means


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    digits = sorted({r["job"]["digit"] for r in records})
    first = records[0]["job"]
    lines = [
        f"MNIST, AUROC of the held-out digit. {first['train_images']:,} training images, {first['test_images']:,} test "
        "images of each kind at most. Mean over seeds with Student's 95 % interval where there are several (kNN and "
        "PCA do not depend on them); the mean over digits is of seeds that have them all. " + watched_by("image"),
        "",
        "| model | " + " | ".join(f"digit {digit}" for digit in digits) + " | mean | P3's mean of these | seeds |",
        "|---" * (len(digits) + 4) + "|",
    ]
    for row in SHOWN:
        own = [_values(records, row, digit) for digit in digits]
        if any(own):
            paper = f"{np.mean([PAPER[row][digit] for digit in digits]):.3f}" if row in PAPER else "–"
            cells = [shown(values, share=True) for values in own]
            fewest, most = min(map(len, own)), max(map(len, own))
            lines.append(
                f"| {row} | {' | '.join(cells)} | {shown(_means(records, row, digits), share=True)} | {paper} | "
                f"{fewest if fewest == most else f'{fewest}–{most}'} |"
            )
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the digits' means."""
    digits = sorted({r["job"]["digit"] for r in records})
    rows = []
    for row in SHOWN:
        values = _means(records, row, digits)
        if values:
            mean, low, high = over_seeds(values)
            paper = float(np.mean([PAPER[row][digit] for digit in digits])) if row in PAPER else None
            rows.append((row, mean, low, high, paper))
    dot_rows(path, rows, f"AUROC, mean over held-out digits {', '.join(map(str, digits))}")


STUDY = Study(
    name="mnist-holdout",
    title="Which detector finds a digit that training never saw?",
    paper="P3, Tables 1 and 3",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
)
