"""Figures, drawn without a display and written whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from offmanifold import atomic

# Okabe & Ito's palette: told apart by readers with any colour vision.
NORMAL, OUTLIER, ACCENT = "#0072B2", "#D55E00", "#009E73"
Array = npt.NDArray[Any]


def new_figure(width: float, height: float) -> Figure:
    """Return a figure of so many inches that belongs to no window."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """Write a PNG whole or not at all."""
    with atomic.replacing(path) as part:
        figure.savefig(part, format="png", dpi=150)


def score_histogram(axes: Any, normal: Array, outliers: Array, threshold: float | None, unit: str) -> None:
    """Draw the scores of normal rows and of outliers, and the threshold between them."""
    pooled = np.concatenate([normal, outliers])
    low, high = np.quantile(pooled, [0.005, 0.998])
    edges = np.linspace(low, high, 50)
    for values, colour, label in ((normal, NORMAL, "normal"), (outliers, OUTLIER, "does not belong")):
        weights = np.full(len(values), 100 / len(values))
        shown = values.clip(low, high)
        axes.hist(shown, edges, weights=weights, color=colour, alpha=0.65, label=label)
    if threshold is not None and np.isfinite(threshold):
        axes.axvline(threshold, color="black", linestyle="--", linewidth=1)
        axes.text(threshold, 0.98, " threshold", transform=axes.get_xaxis_transform(), va="top", fontsize=9)
    axes.set_xlabel(f"score ({unit}; high = normal)")
    axes.set_ylabel("rows (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")


def demo_figure(
    path: Path,
    *,
    normal: Array,
    outliers: Array,
    threshold: float,
    unit: str,
    pictures: Array,
    reconstructions: Array,
    captions: Sequence[str],
    title: str,
) -> None:
    """Draw the score histogram above the most abnormal pictures and their reconstructions.

    ``pictures`` and ``reconstructions`` are ``(n, H, W)`` in [0, 1].
    """
    figure = new_figure(9, 6.4)
    top, bottom = np.ravel(figure.subfigures(2, 1, height_ratios=[1.2, 1], squeeze=False))
    score_histogram(top.subplots(), normal, outliers, threshold, unit)
    top.suptitle(title, fontsize=12)
    bottom.suptitle("The most abnormal inputs (above) and what the model makes of them (below)", fontsize=10)
    axes = bottom.subplots(2, len(pictures), squeeze=False)
    for column, caption in enumerate(captions):
        for row, image in enumerate((pictures[column], reconstructions[column])):
            axes[row, column].imshow(image, cmap="gray_r", vmin=0, vmax=1)
            axes[row, column].set_axis_off()
        axes[0, column].set_title(caption, fontsize=8)
    write_figure(figure, path)


def dot_rows(path: Path, rows: Sequence[tuple[str, float, float, float, float | None]], xlabel: str) -> None:
    """Draw one line a row: our value with its interval, and the paper's value where there is one.

    Rows are (label, value, low, high, paper's value or None).
    """
    figure = new_figure(7.5, 0.9 + 0.34 * len(rows))
    axes = figure.subplots()
    places = np.arange(len(rows))[::-1]
    told = False  # about the paper's mark
    for place, (_, value, low, high, paper) in zip(places, rows, strict=True):
        first = place == places[0]
        axes.plot([low, high], [place, place], color=NORMAL, linewidth=2)
        axes.plot(value, place, "o", color=NORMAL, label="here, 95 % interval" if first else None)
        if paper is not None:
            axes.plot(paper, place, "D", color=OUTLIER, fillstyle="none", label=None if told else "paper")
            told = True
    axes.axvline(0.5, color="0.6", linewidth=0.8, linestyle=":")
    axes.set_yticks(places, [row[0] for row in rows])
    axes.set_xlim(0, 1.02)
    axes.set_xlabel(xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.0 + 0.5 / len(rows) + 0.1), ncols=2)
    write_figure(figure, path)
