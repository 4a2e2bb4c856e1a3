"""P4, Theorem 4 and Fig. 2 (P0, Theorem 1): with bounded slopes the least penalty is not the sparsest code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offmanifold.report.figures import new_figure, write_figure
from offmanifold.studies.core import Job, Record, Study, arrays_of

Array = npt.NDArray[np.float64]
# Exact where the networks' losses (probability/penalties.py) are smoothed at 0; a logarithm needs a little of that.
ROWS: dict[str, tuple[Callable[[Array], Array], str]] = {
    "identity": (lambda u: u, "1"),
    "Huber": (lambda u: np.where(u < 1, 0.5 * u**2, u - 0.5), "1"),
    "u / (u + 0.1)": (lambda u: u / (u + 0.1), "10"),
    "square root": (np.sqrt, "∞"),
    "log": (lambda u: np.log(u + 1e-30), "∞"),
}
# Side of the square that the data's curve lies in.
SIDES = {
    "smoke": (1.0, 0.1),
    "laptop": tuple(10.0 ** np.linspace(0, -4, 41)),
    "paper": tuple(10.0 ** np.linspace(0, -4, 401)),
}
POINTS = 2001


def curve(side: float) -> tuple[Array, Array]:
    """Return places t in [0, 1] ``(n,)`` and a long curve ``(n, 2)`` of them within a square of that side."""
    t = np.linspace(0, 1, POINTS)
    return t, side * 0.5 * np.column_stack([1 + np.cos(14 * np.pi * t), 1 + np.sin(18 * np.pi * t)])


def losses(penalty: Callable[[Array], Array], side: float) -> tuple[float, float]:
    """Return the penalty of two codes that both reconstruct the curve: x itself, and (t, 0) (P4 Eq. 7 without g(0)).

    The identity decodes the first; a decoder that winds along the curve the second, which is the sparsest there is.
    """
    t, x = curve(side)
    dense, sparse = (x**2).mean(0), np.array([(t**2).mean(), 0.0])
    return float(penalty(dense).sum() / 2), float(penalty(sparse).sum() / 2)


def jobs(scale: str, seed: int) -> list[Job]:
    """Return one job a penalty; nothing here is random."""
    return [
        {"name": f"row{index}", "row": row, "sides": list(SIDES[scale]), "seed": seed} for index, row in enumerate(ROWS)
    ]


def run(job: Job) -> dict[str, Any]:
    """Compare the two codes for every size of the square."""
    found = np.array([losses(ROWS[job["row"]][0], side) for side in job["sides"]])
    sparse_wins = found[:, 1] < found[:, 0]
    return {
        "sparse_wins_everywhere": bool(sparse_wins.all()),
        # Below this side the code with two latents is preferred.
        "dense_below": None if sparse_wins.all() else float(max(np.array(job["sides"])[~sparse_wins])),
        "arrays": {"dense": found[:, 0], "sparse": found[:, 1]},
    }


def table(records: list[Record]) -> str:
    """Return the Markdown table."""
    lines = [
        "A curve within a small square, reconstructed without error from two latents (the point itself) or from one "
        "(the place on the curve): which code has the smaller penalty? The theorem: bounded slopes always fail "
        "somewhere. (An unbounded one need not suffice: the square root, too, prefers two small latents.)",
        "",
        "| h | largest slope | two latents preferred | one latent preferred |",
        "|---|---|---|---|",
    ]
    by_row = {r["job"]["row"]: r["metrics"] for r in records}
    for row, (_, slope) in ROWS.items():
        if row in by_row:
            below = by_row[row]["dense_below"]
            cells = ("never", "always") if below is None else (f"side ≤ {below:.3g}", f"side > {below:.3g}")
            lines.append(f"| {row} | {slope} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def figure(records: list[Record], path: Path) -> None:
    """Draw the curve, and what one latent costs more than two, over the square's side."""
    drawing = new_figure(9, 3.6)
    left, right = drawing.subplots(1, 2, width_ratios=[1, 1.6])
    left.plot(*curve(1.0)[1].T, linewidth=1)
    left.set_aspect("equal")
    left.set_title("the data: a curve in a square", fontsize=10)
    left.set_xticks([0, 1], ["0", "side"])
    left.set_yticks([0, 1], ["0", "side"])
    for record in sorted(records, key=lambda r: list(ROWS).index(r["job"]["row"])):
        arrays = arrays_of(record)
        right.plot(
            record["job"]["sides"], arrays["sparse"] - arrays["dense"], label=record["job"]["row"], linewidth=1.5
        )
    right.axhline(0, color="black", linewidth=0.8)
    right.set_xscale("log")
    right.set_yscale("symlog", linthresh=0.1)
    right.set_xlabel("side of the square")
    right.set_ylabel("penalty of one latent − of two")
    right.set_title("below 0 the sparsest code is preferred", fontsize=10)
    right.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(drawing, path)


STUDY = Study(
    name="penalties",
    title="Which penalty prefers the sparsest code?",
    paper="P4, Theorem 4 and Fig. 2; P0, Theorem 1",
    seeds={"smoke": (0,), "laptop": (0,), "paper": (0,)},
    jobs=jobs,
    run=run,
    table=table,
    figure=figure,
)
