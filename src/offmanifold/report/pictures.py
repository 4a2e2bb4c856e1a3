"""Why a picture is abnormal, in pictures: as it came, as the model has it, its nearest normal version, and a map."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from offmanifold.data.inputs import Float64Array, Rows
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.explanations import Explanation
from offmanifold.report.charts import cut
from offmanifold.report.figures import new_figure, write_figure

Pixels = npt.NDArray[np.uint8]
MAP = "what its pixels add"
# What a reader needs to know about the map.
KEY = (
    "The deeper the orange of a pixel, the more it speaks against the picture; blue ones speak for it. One scale for "
    "all pictures."
)
# Inches of a picture's side on a sheet.
SIDE = 1.5
# Letters of a picture's name that are shown.
NAME_LETTERS = 22
# Letters of the key that an inch holds, and inches of a line of it.
KEY_LETTERS, LINE = 16, 0.15


class Picture(NamedTuple):
    """Pixels ``(H, W)`` or ``(H, W, channels)``, and what they show."""

    caption: str
    pixels: Pixels


def explained(detector: OutlierDetector, explanation: Explanation) -> list[list[Picture]]:
    """Return the pictures of each row that is explained; what does not exist for one is left out.

    The maps share one colour scale, so that two of them compare.
    """
    layout = Rows(explanation.rows, detector.spec_).as_came.layout
    maps = _without_channels(explanation.contributions, layout)
    most = float(np.nanmax(np.abs(maps), initial=0.0))
    rebuilt = detector.reconstruct(explanation.rows) if hasattr(detector, "reconstruct") else None
    found = []
    for i, row in enumerate(explanation.rows):
        shown = [Picture("as it came", _grey_or_colour(row, layout))]
        if rebuilt is not None:
            shown.append(Picture("as the model has it", _grey_or_colour(rebuilt[i], layout)))
        if np.isfinite(explanation.nearest[i]).all():
            shown.append(Picture("nearest normal version", _grey_or_colour(explanation.nearest[i], layout)))
        found.append([*shown, Picture(MAP, _map(maps[i], most))])
    return found


def write_sheet(path: Path, rows: Sequence[list[Picture]], names: Sequence[str]) -> None:
    """Draw a line of pictures for each row, with its name to the left."""
    captions = list(dict.fromkeys(picture.caption for row in rows for picture in row))
    captions.sort(key=lambda caption: caption == MAP)  # which is there for every row, comes last
    width = SIDE * len(captions) + 1.6
    key = textwrap.fill(KEY, int(width * KEY_LETTERS))
    figure = new_figure(width, SIDE * len(rows) + 0.6 + LINE * key.count("\n"))
    axes = figure.subplots(len(rows), len(captions), squeeze=False)
    for line, row, name in zip(axes, rows, names, strict=True):
        pixels = {picture.caption: picture.pixels for picture in row}
        for cell, caption in zip(line, captions, strict=True):
            cell.set_xticks([])
            cell.set_yticks([])
            cell.spines[:].set_visible(False)
            if caption in pixels:
                cell.imshow(pixels[caption], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        shown = "\n".join(cut(text, NAME_LETTERS) for text in name.split("\n"))
        line[0].set_ylabel(shown, rotation=0, ha="right", va="center", fontsize=8, parse_math=False)
    for cell, caption in zip(axes[0], captions, strict=True):
        cell.set_title(caption, fontsize=9)
    figure.supxlabel(key, fontsize=8)
    write_figure(figure, path)


def _grey_or_colour(image: Float64Array, layout: str) -> Pixels:
    if layout == "chw":
        image = np.moveaxis(image, 0, -1)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    pixels: Pixels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    return pixels


def _without_channels(contributions: Float64Array, layout: str) -> Float64Array:
    axis = {"hwc": -1, "chw": 1}.get(layout)
    return contributions if axis is None else contributions.sum(axis)


def _map(contributions: Float64Array, most: float) -> Pixels:
    """Colour contributions: orange against, blue for, white none; the square root shows small ones too."""
    strength = np.sqrt(np.nan_to_num(np.abs(contributions)) / max(most, 1e-300)).clip(0, 1)[..., None]
    colours: Any = np.where(contributions[..., None] < 0, np.array([213, 94, 0]), np.array([0, 114, 178]))
    pixels: Pixels = (255 + (colours - 255) * strength).round().astype(np.uint8)
    return pixels
