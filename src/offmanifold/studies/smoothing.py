"""P4, Fig. 3: the smaller γ, the less smooth the loss; exact slices through an optimal sparse solution."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offmanifold.report.figures import new_figure, write_figure
from offmanifold.studies.core import Job, Record, Study, arrays_of, shown

Array = npt.NDArray[np.float64]
GAMMAS = (1.0, 0.1, 0.01, 0.001)
# Dimensions of the data, of their subspace, of the latent space.
D, R, K = 10, 2, 5
# Scale → slices through the optimum a seed.
SLICES = {"smoke": 5, "laptop": 400, "paper": 4000}
PLACES = np.linspace(-1, 2, 301)


def loss(covariance: Array, decoder: Array, encoder: Array, gamma: float) -> float:
    """Return the linear VAE's loss (P4 Eq. 3, ½ restored, no constants), each latent's variance at its best.

    Parameters
    ----------
    covariance : (d, d)
        Of the centred data.
    decoder, encoder : (d, k) and (k, d)
    gamma : float
    """
    residual = np.eye(len(covariance)) - decoder @ encoder
    # Minimised over σ²: σ² |w|²/γ + σ² − log σ² at σ² = 1/(1 + |w|²/γ).
    precision = 1 + (decoder**2).sum(0) / gamma
    error = np.trace(residual @ covariance @ residual.T) / gamma
    means = np.trace(encoder @ covariance @ encoder.T)
    return float(0.5 * (error + len(covariance) * np.log(gamma) + (1 + np.log(precision)).sum() + means))


def minima(values: Array) -> int:
    """Count the local minima of a slice, its ends left out."""
    inner = values[1:-1]
    return int(((inner < values[:-2]) & (inner <= values[2:])).sum())


def solution(basis: Array, rotation: Array) -> tuple[Array, Array]:
    """Return decoder and encoder that reconstruct the subspace of ``basis`` ``(d, r)``.

    ``rotation`` ``(r, k)``, with orthonormal rows, says which latents carry it: rows of the identity use r of them, the
    optimal sparse solution; others use all k as well and waste k − r.
    """
    decoder: Array = basis @ rotation
    return decoder, np.asarray(np.linalg.pinv(decoder), dtype=np.float64)


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a seed."""
    return [{"name": f"slices-seed{seed}", "seed": seed, "slices": SLICES[scale], "gammas": list(GAMMAS)}]


def run(job: Job) -> dict[str, Any]:
    """Cut the loss from the sparse solution (at 0) to others that reconstruct as well but use every latent (at 1)."""
    rng = np.random.default_rng(job["seed"])
    basis = np.linalg.qr(rng.normal(size=(D, R)))[0]  # the data have variance 1 along each direction
    covariance = basis @ basis.T
    decoder, encoder = solution(basis, np.eye(R, K))
    values = np.empty((job["slices"], len(GAMMAS), len(PLACES)))
    for index in range(job["slices"]):
        rotation = np.linalg.qr(rng.normal(size=(K, R)))[0].T
        towards = [other - own for other, own in zip(solution(basis, rotation), (decoder, encoder), strict=True)]
        for row, gamma in enumerate(GAMMAS):
            values[index, row] = [
                loss(covariance, decoder + place * towards[0], encoder + place * towards[1], gamma) for place in PLACES
            ]
    counts = np.apply_along_axis(minima, 2, values)
    lowest = np.abs(PLACES[values.argmin(2)])
    return {
        "several_minima": (counts > 1).mean(0).tolist(),
        "most_minima": counts.max(0).tolist(),
        "distance_of_the_lowest": lowest.mean(0).tolist(),
        "arrays": {"slices": values[:2]},
    }


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    first = records[0]["job"]
    lines = [
        f"Linear VAE, {D} dimensions, data on a random {R}-dimensional subspace, {K} latents: {first['slices']} slices "
        "a seed, in exact arithmetic, from an optimal sparse solution (place 0) to random others that reconstruct as "
        "well but use all latents (place 1). Mean over seeds with Student's 95 % interval where there are several. The "
        "paper shows two slices.",
        "",
        "| γ | slices with more than one minimum | the lowest point's distance from the sparse solution | seeds |",
        "|---|---|---|---|",
    ]
    for index, gamma in enumerate(GAMMAS):
        cells = [
            shown([r["metrics"][name][index] for r in records], share=share)
            for name, share in (("several_minima", True), ("distance_of_the_lowest", False))
        ]
        lines.append(f"| {gamma:g} | {' | '.join(cells)} | {len(records)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw two slices, each γ's curve shifted and scaled to the panel."""
    slices = arrays_of(records[0])["slices"]
    drawing = new_figure(9, 3.6)
    for number, (axes, values) in enumerate(zip(drawing.subplots(1, 2, sharey=True), slices, strict=True), 1):
        for curve, gamma in zip(values, GAMMAS, strict=True):
            scaled = (curve - curve.min()) / np.quantile(curve - curve.min(), 0.6)
            axes.plot(PLACES, scaled, label=f"γ = {gamma:g}", linewidth=1.5)
        axes.set_title(f"slice {number}", fontsize=10)
        axes.set_xlabel("place: 0 is sparse, 1 uses every latent")
        axes.set_ylim(-0.05, 2)
        axes.axvline(0, color="0.6", linewidth=0.8, linestyle=":")
        axes.spines[["top", "right"]].set_visible(False)
    drawing.axes[0].set_ylabel("loss above its lowest point, scaled")
    drawing.axes[0].legend(frameon=False, fontsize=8)
    write_figure(drawing, path)


STUDY = Study(
    name="smoothing",
    title="How smooth is the VAE's loss as γ falls?",
    paper="P4, Fig. 3",
    seeds={"smoke": (0,), "laptop": (0, 1, 2), "paper": (0, 1, 2, 3, 4)},
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
)
