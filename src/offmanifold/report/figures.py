"""Figures, drawn without a display and written whole."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from offmanifold import atomic
from offmanifold.measures.ranks import indistinguishable

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


def dot_rows(
    path: Path, rows: Sequence[tuple[str, float, float, float, float | None]], xlabel: str, *, shares: bool = True
) -> None:
    """Draw one line a row: our value with its interval, and the paper's value where there is one.

    Rows are (label, value, low, high, paper's value or None). The axis is that of ``shares`` (AUROC), from 0 to 1 with
    a line at chance, unless they are none.
    """
    figure = new_figure(7.5, 1.1 + 0.34 * len(rows))
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
    axes.set_yticks(places, [row[0] for row in rows])
    if shares:
        axes.axvline(0.5, color="0.6", linewidth=0.8, linestyle=":")
        axes.set_xlim(0, 1.02)
    axes.set_xlabel(xlabel)
    axes.spines[["top", "right"]].set_visible(False)
    if rows:
        figure.legend(frameon=False, loc="outside upper center", ncols=2)
    write_figure(figure, path)


def critical_difference(
    path: Path, ranks: Mapping[str, float], difference: float | None, emphasised: Collection[str] = ()
) -> None:
    """Draw mean ranks on a line, best to the left; a bar joins methods that no test tells apart (Demšar 2006).

    Parameters
    ----------
    path : Path
    ranks : mapping of label → mean rank
    difference : float, optional
        The critical difference, drawn above the line; without it no bars are drawn.
    emphasised : collection of labels
    """
    names = sorted(ranks, key=ranks.__getitem__)
    places = [ranks[name] for name in names]
    groups = indistinguishable(places, difference) if difference else []
    half, last = (len(names) + 1) // 2, max(len(names), 2)
    # Heights in lines: the axis at 0, bars below it, then the labels, a half of them on each side.
    bars, labels = 0.5, 0.5 + 0.45 * len(groups)
    lowest = labels + half
    margin = 0.4 * last
    figure = new_figure(8, 0.25 * (lowest + 2))
    axes = figure.subplots()
    axes.set_xlim(1 - margin, last + margin)
    axes.set_ylim(lowest, -1.9)
    axes.set_axis_off()
    axes.plot([1, last], [0, 0], color="black", linewidth=1)
    for rank in range(1, last + 1):
        axes.plot([rank, rank], [0, -0.2], color="black", linewidth=1)
        axes.text(rank, -0.3, str(rank), ha="center", va="bottom", fontsize=9)
    if difference:
        axes.plot([1, 1 + difference], [-1.3, -1.3], color=OUTLIER, linewidth=2)
        text = f" critical difference {difference:.2f}"
        axes.text(1 + difference, -1.3, text, va="center", fontsize=9, color=OUTLIER)
    for index, (first, end) in enumerate(groups):
        height = bars + 0.45 * index
        axes.plot([places[first] - 0.06, places[end] + 0.06], [height, height], color=NORMAL, linewidth=4)
    for index, (name, place) in enumerate(zip(names, places, strict=True)):
        left = index < half
        # The outermost label is the highest on either side, so that no line crosses another.
        height = labels + 0.5 + (index if left else len(names) - 1 - index)
        side = 0.9 if left else last + 0.1
        axes.plot([place, place, side], [0, height, height], color="0.4", linewidth=0.8)
        axes.plot(place, 0, "o", color="black", markersize=3)
        label = f"{name}  {place:.2f} " if left else f" {place:.2f}  {name}"
        weight = "bold" if name in emphasised else "normal"
        axes.text(side, height, label, ha="right" if left else "left", va="center", fontsize=9, fontweight=weight)
    write_figure(figure, path)
