"""P2, appendix F: of two linear models of the same rows the ELBO prefers the one with simple posteriors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.optimize import minimize

from offmanifold.probability.linear import LinearGaussian
from offmanifold.report.figures import ACCENT, NORMAL, OUTLIER, new_figure, write_figure
from offmanifold.studies import toy_vaes
from offmanifold.studies.core import Job, Record, Study, arrays_of, shown

Array = npt.NDArray[np.float64]
# The true decoder's singular values, its dimensions, σ².
SINGULAR, DIMENSION, VARIANCE = (2.0, 0.5), 5, 0.1
# Degrees between the latents' axes and those whose posteriors are independent: A has TRUTH, A′ has 0.
TRUTH = 45.0
ANGLES: Array = np.linspace(0, TRUTH, 10)
# Name → weights in the bound.
BOUNDS = {"ELBO": 1, "IWAE, 5": 5, "IWAE, 20": 20}
COLOURS = dict(zip(BOUNDS, (OUTLIER, ACCENT, NORMAL), strict=True))
# Scale → rows (training, choosing, test), steps, restarts from the truth and as many from random weights, draws that
# the importance-weighted gap is averaged over.
SIZES = {
    "smoke": ((200, 50, 50), 3, 1, 100),
    "laptop": ((5000, 2000, 2000), 16_000, 3, 20_000),
    "paper": ((5000, 2000, 2000), 40_000, 5, 200_000),
}


def turned(degrees: float) -> Array:
    """Return the rotation of the plane by an angle."""
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def angle_of(model: LinearGaussian, aligned: LinearGaussian) -> float:
    """Return by how many degrees a model's latents are turned from another's, axes and signs interchangeable."""
    left, _, right = np.linalg.svd(np.linalg.pinv(aligned.decoder) @ model.decoder)
    cosine, sine = np.abs(left @ right)[:, 0]
    degrees = float(np.rad2deg(np.arctan2(sine, cosine)))
    return min(degrees, 90 - degrees)


def recovery(encoder: Array, truth: LinearGaussian) -> float:
    """Return each true latent's |correlation| with the code that shows it best, averaged over the latents."""
    deviations = np.sqrt(np.einsum("kd,de,ke->k", encoder, truth.covariance, encoder))
    return float(np.abs(encoder @ truth.decoder / deviations[:, None]).max(0).mean())


def gap(model: LinearGaussian, noise: Array) -> float:
    """Return how far the bound of ``len(noise)`` weights stays below log p(x) for its best q with independent latents.

    For one weight it is in closed form; for more it is an average, and a wider q than the ELBO's is the best.
    """
    if len(noise) == 1:
        return model.mean_field_gap
    start = -0.5 * np.log(np.diag(model.precision))
    few, rest = np.split(noise, [noise.shape[1] // 4], axis=1)
    found = minimize(lambda log_std: model.importance_gap(np.exp(log_std), few), start, method="Nelder-Mead")
    return model.importance_gap(np.exp(found.x), rest)


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a bound; a seed is a decoder and its rows."""
    rows, steps, restarts, draws = SIZES[scale]
    return [
        {
            "name": f"weights{weights}-seed{seed}",
            "bound": bound,
            "seed": seed,
            "rows": list(rows),
            "steps": steps,
            "restarts": restarts,
            "draws": draws,
        }
        for bound, weights in BOUNDS.items()
    ]


def run(job: Job) -> dict[str, Any]:
    """Compute the bound's gap for every rotation, and see to which one training goes."""
    rng = np.random.default_rng(job["seed"])
    basis = np.linalg.qr(rng.standard_normal((DIMENSION, len(SINGULAR))))[0]
    aligned = LinearGaussian(basis * np.array(SINGULAR), VARIANCE)
    truth = aligned.rotated(turned(TRUTH))
    weights = BOUNDS[job["bound"]]
    noise = rng.standard_normal((weights, job["draws"], len(SINGULAR)))
    gaps = np.array([gap(aligned.rotated(turned(degrees)), noise) for degrees in ANGLES])

    train, choosing, _ = np.split(truth.sample(sum(job["rows"]), rng), np.cumsum(job["rows"])[:2])
    rows, held_out = torch.from_numpy(train).float(), torch.from_numpy(choosing).float()
    method = toy_vaes.Method("VAE" if weights == 1 else "IWAE", samples=weights)
    from_truth = [i < job["restarts"] for i in range(2 * job["restarts"])]
    seeds = [1000 * job["seed"] + i for i in range(len(from_truth))]
    stack = toy_vaes.StackedVAE(DIMENSION, len(SINGULAR), seeds, VARIANCE, hidden=())
    begin_at(stack, from_truth, truth)
    toy_vaes.fit_stack(stack, rows, held_out, method, steps=job["steps"], seed=job["seed"])
    losses = toy_vaes.objectives(stack, held_out, method)
    ends = []
    for restart in range(len(stack)):
        decoder = stack.decoder.weights[0][restart].detach().double().numpy().T
        encoder = stack.encoder.weights[0][restart, :, : len(SINGULAR)].detach().double().numpy().T
        model = LinearGaussian(decoder, VARIANCE)
        ends.append((angle_of(model, aligned), recovery(encoder, truth), truth.divergence(model)))
    best = {
        start: min((i for i, flag in enumerate(from_truth) if flag is wanted), key=losses.__getitem__)
        for start, wanted in (("truth", True), ("random", False))
    }
    return {
        "objective": losses.tolist(),
        "entropy": truth.entropy,
        "gap": {"A": float(gaps[-1]), "A′": float(gaps[0])},
        "recovery": {"A": recovery(truth.encoder, truth), "A′": recovery(aligned.encoder, truth)},
        "ends": {start: dict(zip(("angle", "recovery", "kl"), ends[i], strict=True)) for start, i in best.items()},
        "arrays": {"gaps": gaps, "angles": np.array([angle for angle, _, _ in ends]), "from_truth": from_truth},
    }


@torch.no_grad()
def begin_at(stack: toy_vaes.StackedVAE, flags: list[bool], truth: LinearGaussian) -> None:
    """Set the flagged restarts to the truth and to the encoder with the best ELBO for it."""
    log_std = torch.from_numpy(-0.5 * np.log(np.diag(truth.precision)))
    for restart in np.flatnonzero(flags):
        stack.decoder.weights[0][restart] = torch.from_numpy(truth.decoder.T)
        stack.decoder.biases[0][restart] = 0
        stack.encoder.weights[0][restart] = torch.from_numpy(np.hstack([truth.encoder.T, 0 * truth.encoder.T]))
        stack.encoder.biases[0][restart] = torch.cat([0 * log_std, log_std])


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    lines = [
        f"x = A z + ε, two latents, {DIMENSION} dimensions, singular values {SINGULAR[0]:g} and {SINGULAR[1]:g}, σ² = "
        f"{VARIANCE}; A′ = A R has the same p(x) and independent posteriors, its latents are A's turned by "
        f"{TRUTH:g}°. −bound: its best value for each, exact (IWAE: averaged over draws); correlation: of a true "
        "latent with the code that shows it best. Then what training on that bound makes of a start at A and of random "
        "ones (the best of each): the angle from A′, least to largest over decoders, the correlation, and KL(p ‖ p_θ), "
        "means over decoders with Student's 95 % interval where there are several. The paper gives no numbers.",
        "",
        "| bound | −bound of A, nats | of A′ | correlation with A | with A′ | start | angle after training | "
        "correlation | KL(p ‖ p_θ), nats |",
        "|---" * 9 + "|",
    ]
    for bound in BOUNDS:
        own = [record["metrics"] for record in records if record["job"]["bound"] == bound]
        if not own:
            continue
        exact = [f"{np.mean([m['entropy'] + m['gap'][model] for m in own]):.3f}" for model in ("A", "A′")]
        exact += [f"{np.mean([m['recovery'][model] for m in own]):.3f}" for model in ("A", "A′")]
        for start in ("truth", "random"):
            ends = [m["ends"][start] for m in own]
            angles = [end["angle"] for end in ends]
            cells = [f"{min(angles):.1f}–{max(angles):.1f}°", shown([end["recovery"] for end in ends], share=True)]
            cells.append(shown([end["kl"] for end in ends]))
            lines.append(f"| {bound} | {' | '.join(exact)} | {start} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw each bound's gap over the angle, and where its training ended."""
    drawing = new_figure(7.5, 4.2)
    above, below = drawing.subplots(2, 1, sharex=True, height_ratios=[2, 1])
    for place, bound in enumerate(BOUNDS):
        own = [arrays_of(record) for record in records if record["job"]["bound"] == bound]
        if not own:
            continue
        colour = COLOURS[bound]
        above.plot(ANGLES, np.mean([arrays["gaps"] for arrays in own], 0), color=colour, label=bound)
        for start, marker in ((True, "o"), (False, "x")):
            ends = np.concatenate([arrays["angles"][arrays["from_truth"] == start] for arrays in own])
            label = ("from A" if start else "from random weights") if place == 0 else None
            below.plot(ends, np.full(len(ends), -place), marker, color=colour, fillstyle="none", label=label)
    above.set_ylabel("log p(x) − bound, nats")
    above.legend(frameon=False, fontsize=8)
    below.set_yticks([-i for i in range(len(BOUNDS))], BOUNDS)
    below.set_ylim(0.5 - len(BOUNDS), 0.5)
    below.set_ylabel("trained")
    below.legend(frameon=False, fontsize=8)
    below.set_xlabel("degrees between the latents and those with independent posteriors: A′ has 0, the truth 45")
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(drawing, path)


STUDY = Study(
    name="disentanglement",
    title="Does the ELBO prefer entangled latents?",
    paper="P2, appendix F",
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
)
