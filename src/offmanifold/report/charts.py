"""Charts of the report: SVG whose colours are the page's own, so that it reads in light and in dark.

Every chart has a ``<title>``, which screen readers say; text from the user's data is escaped.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup

Array = npt.NDArray[Any]
WIDTH, HEIGHT, BARS_WIDTH = 480.0, 210.0, 560.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 14.0, 12.0, 40.0
# A histogram reaches beyond the normal rows by so many times their range.
MOST_RANGE = 4.0


class Axes:
    """A chart under construction: data coordinates in, SVG out.

    Parameters
    ----------
    title : str
        What the chart shows, for readers who cannot see it.
    x, y : (float, float)
        What the sides stand for.
    labels : (str, str)
    logarithmic : bool
        Whether y is on a log scale.
    """

    def __init__(
        self, title: str, x: tuple[float, float], y: tuple[float, float], labels: tuple[str, str],
        *, logarithmic: bool = False,
    ) -> None:  # fmt: skip
        self.title, self.labels, self.logarithmic = title, labels, logarithmic
        self.x, self.y = _open(x), _open(tuple(np.log10(y)) if logarithmic else y)
        self.parts: list[Markup] = []

    def _at(self, x: Any, y: Any) -> tuple[Array, Array]:
        y = np.log10(y) if self.logarithmic else np.asarray(y, float)
        across = LEFT + (np.asarray(x, float) - self.x[0]) / (self.x[1] - self.x[0]) * (WIDTH - LEFT - RIGHT)
        down = HEIGHT - BOTTOM - (y - self.y[0]) / (self.y[1] - self.y[0]) * (HEIGHT - TOP - BOTTOM)
        return across, down

    def line(self, x: Any, y: Any, kind: str) -> None:
        """Draw a line; ``kind`` is a class of the page's style sheet."""
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(*self._at(x, y), strict=True))
        self.parts.append(Markup('<polyline class="line {}" points="{}"/>').format(kind, points))

    def steps(self, edges: Array, counts: Array, kind: str) -> None:
        """Fill a histogram."""
        across, down = self._at(np.repeat(edges, 2), np.concatenate([[0], np.repeat(counts, 2), [0]]))
        points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(across, down, strict=True))
        self.parts.append(Markup('<polygon class="fill {}" points="{}"/>').format(kind, points))

    def upright(self, x: float, text: str) -> None:
        """Draw a dashed line across the chart with a word beside it."""
        across = float(self._at(x, self.y[0])[0])
        end = across > WIDTH - 90
        line = Markup('<line class="mark" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>')
        self.parts.append(line.format(across, TOP, HEIGHT - BOTTOM))
        self.parts.append(_text(across + (-4 if end else 4), TOP + 10, text, "end" if end else "start"))

    def svg(self) -> Markup:
        """Return the chart."""
        frame = [Markup('<svg viewBox="0 0 {} {}" role="img"><title>{}</title>').format(WIDTH, HEIGHT, self.title)]
        below = HEIGHT - BOTTOM + 16
        frame += [_text(float(self._at(value, 1.0)[0]), below, _number(value), "middle") for value in _ticks(*self.x)]
        grid = Markup('<line class="grid" x1="{0}" x2="{1}" y1="{2:.1f}" y2="{2:.1f}"/>')
        for value in _decades(*self.y) if self.logarithmic else _ticks(*self.y):
            shown = 10**value if self.logarithmic else value
            down = float(self._at(0.0, shown)[1])
            frame.append(grid.format(LEFT, WIDTH - RIGHT, down))
            frame.append(_text(LEFT - 6, down + 4, _number(shown), "end"))
        frame.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, self.labels[0], "middle", "label"))
        upright = Markup('<text transform="translate(12 {}) rotate(-90)" text-anchor="middle" class="label">{}</text>')
        frame.append(upright.format((TOP + HEIGHT - BOTTOM) / 2, self.labels[1]))
        return Markup("").join([*frame, *self.parts, Markup("</svg>")])


def histogram(title: str, groups: Sequence[tuple[str, Array]], threshold: float, label: str) -> Markup:
    """Draw the scores of several groups of rows (class, scores) and the threshold.

    The first group, the normal rows, sets the scale: what lies farther off than MOST_RANGE times its range is in the
    outermost bars, and what is lower is counted.
    """
    pooled = np.concatenate([scores for _, scores in groups])
    low, high = (float(end) for end in np.quantile(pooled, [0.01, 0.999]))
    own = [float(end) for end in np.quantile(groups[0][1], [0.01, 0.999])]
    if np.isfinite(threshold):
        low, high = min(low, threshold), max(high, threshold)
        own.append(threshold)
    reach = MOST_RANGE * (max(own) - min(own) or 1.0)
    low, high = max(low, min(own) - reach), min(high, max(own) + reach)
    edges = np.linspace(*_open((low, high)), 41)
    counts = [np.histogram(scores.clip(*edges[[0, -1]]), edges)[0] / len(scores) * 100 for _, scores in groups]
    below = sum(int((scores < edges[0]).sum()) for _, scores in groups)
    if below:
        label += f" – {below:,} lower than shown"
    axes = Axes(title, (edges[0], edges[-1]), (0.0, max(float(c.max()) for c in counts) * 1.05), (label, "rows (%)"))
    for (kind, _), count in zip(groups, counts, strict=True):
        axes.steps(edges, count, kind)
    if np.isfinite(threshold):
        axes.upright(threshold, "threshold")
    return axes.svg()


def curves(title: str, lines: Sequence[tuple[str, Array, Array]], labels: tuple[str, str]) -> Markup | None:
    """Draw lines (class, x, y) on a log scale where all values allow it; None where there is nothing to draw."""
    lines = [(kind, x[np.isfinite(y)], y[np.isfinite(y)]) for kind, x, y in lines]
    lines = [line for line in lines if len(line[1]) > 1]
    if not lines:
        return None
    x, y = (np.concatenate([line[i] for line in lines]) for i in (1, 2))
    logarithmic = bool(y.min() > 0 and y.max() > 20 * y.min())
    axes = Axes(title, (x.min(), x.max()), (y.min(), y.max()), labels, logarithmic=logarithmic)
    for kind, own_x, own_y in lines:
        axes.line(own_x, own_y, kind)
    return axes.svg()


def calibration(title: str, p_values: Array, band: float) -> Markup:
    """Draw how many rows have a p-value of at most p, beside the promised diagonal and a band of chance around it."""
    axes = Axes(title, (0.0, 1.0), (0.0, 1.0), ("p", "p-values up to p"))
    axes.line([0, 1], [0, 1], "promise")
    axes.line([0, 1 - band], [band, 1], "grid")
    axes.line([band, 1], [0, 1 - band], "grid")
    shares = np.linspace(0, 1, len(p_values) + 1)
    axes.line([0, *np.sort(p_values), 1], [*shares, 1], "normal")
    return axes.svg()


def bars(title: str, values: Sequence[tuple[str, float, str]]) -> Markup:
    """Draw bars to the left of zero in one colour and to the right in another: (name, value, text) each.

    What is too long stands in two lines, what is too long for these is cut in its middle, and whole where the pointer
    rests on it.
    """
    most = max([abs(value) for _, value, _ in values] + [1e-300])
    row, name_width, room = 22.0, 150.0, 110.0
    height = row * len(values) + 6
    negative = any(value < 0 for _, value, _ in values)
    positive = any(value > 0 for _, value, _ in values)
    zero = name_width + (room if negative and positive else 2 * room if negative else 0)
    reach = room if negative and positive else 2 * room
    parts = [Markup('<svg viewBox="0 0 {} {}" role="img"><title>{}</title>').format(BARS_WIDTH, height, title)]
    for i, (name, value, text) in enumerate(values):
        width = min(abs(value) / most, 1.0) * reach
        y = 4 + i * row
        parts.append(Markup("<g><title>{}: {}</title>").format(name, text))
        parts += _lines(name_width - 6, y, [name] if width_of(name) <= 20 else _halves(name, 27), "end")
        parts.append(
            Markup('<rect class="{}" x="{:.1f}" y="{}" width="{:.1f}" height="15"/>').format(
                "odd" if value < 0 else "normal", zero - width if value < 0 else zero, y, max(width, 1.0)
            )
        )
        before, arrow, after = text.partition(" → ")
        halves = [cut(before, 27), f"→ {cut(after, 27)}"] if arrow and width_of(text) > 27 else [cut(text, 27)]
        parts += [*_lines(name_width + 2 * room + 6, y, halves, "start"), Markup("</g>")]
    return Markup("").join([*parts, Markup("</svg>")])


def width_of(text: str) -> int:
    """Return how many letters' width a text takes: a Chinese one that of two."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def cut(text: str, most: int) -> str:
    """Leave out of a text's middle what is wider than ``most`` letters."""
    if width_of(text) <= most:
        return text
    begin, end = "", ""
    for first, last in zip(text, reversed(text), strict=True):
        if width_of(begin + first + end) + 1 > most:
            break
        begin += first
        if width_of(begin + last + end) + 1 > most:
            break
        end = last + end
    return f"{begin}…{end}"


def _halves(text: str, most: int) -> list[str]:
    """Return a text as two lines of up to ``most`` letters, the first one up to the last separator where that does."""
    end = max(i for i in range(len(text) + 1) if width_of(text[:i]) <= most)
    separators = [i for i in range(1, end + 1) if text[i - 1] in " _-./" and width_of(text[i:]) <= most]
    end = max(separators, default=end)
    return [text[:end], cut(text[end:], most)]


def _lines(x: float, y: float, lines: Sequence[str], anchor: str) -> list[Markup]:
    """Return one line, or two small ones, beside the bar at ``y``."""
    if len(lines) == 1:
        return [_text(x, y + 13, lines[0], anchor)]
    return [_text(x, y + lower, line, anchor, "small") for lower, line in zip((7, 18), lines, strict=True)]


def dots(title: str, rows: Sequence[tuple[str, dict[str, float]]]) -> Markup:
    """Draw a row for each name with a dot for each class, on a scale from 0 to 1."""
    row, name_width = 22.0, 130.0
    height = row * len(rows) + 26
    scale = WIDTH - name_width - 16
    parts = [Markup('<svg viewBox="0 0 {} {}" role="img"><title>{}</title>').format(WIDTH, height, title)]
    for value in (0, 0.25, 0.5, 0.75, 1):
        x = name_width + scale * value
        parts.append(
            Markup('<line class="grid" x1="{0}" x2="{0}" y1="0" y2="{1}"/>').format(x, row * len(rows))
            + _text(x, height - 8, f"{value:g}", "middle")
        )
    for i, (name, values) in enumerate(rows):
        y = (i + 0.5) * row
        parts.append(_text(name_width - 8, y + 4, name, "end"))
        for kind, value in values.items():
            x = name_width + scale * value
            # A shape for each kind, not a colour alone.
            shape = {
                "detector": Markup('<circle class="detector" cx="{0:.1f}" cy="{1}" r="5.5"/>'),
                "kNN": Markup('<rect class="knn" x="{2:.1f}" y="{3}" width="8" height="8"/>'),
                "PCA": Markup('<path class="pca" d="M{0:.1f} {3} l5 9 h-10 z"/>'),
            }[kind]
            parts.append(shape.format(x, y, x - 4, y - 4))
    return Markup("").join([*parts, Markup("</svg>")])


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(x, y, anchor, kind, text)


def _open(ends: Any) -> tuple[float, float]:
    low, high = (float(end) for end in ends)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _ticks(low: float, high: float) -> list[float]:
    """Return about five round numbers between the ends."""
    raw = (high - low) / 5
    step = 10 ** np.floor(np.log10(raw))
    step *= next(factor for factor in (1, 2, 5, 10) if factor * step >= raw)
    return [float(value) for value in np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step]


def _decades(low: float, high: float) -> list[float]:
    """Return the logarithms of powers of ten between the ends."""
    return [float(value) for value in range(math.ceil(low), math.floor(high) + 1)]


def _number(value: float) -> str:
    return f"{value + 0.0:g}"  # no minus before a zero
