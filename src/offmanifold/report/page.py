"""The report: one file that opens from disk, loads nothing and runs nothing."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image

from offmanifold import atomic, calibration
from offmanifold.data.inputs import Float64Array, Rows, evenly
from offmanifold.detectors.base import OutlierDetector
from offmanifold.detectors.explanations import Explanation, cell
from offmanifold.diagnosis.findings import Diagnosis
from offmanifold.report import charts

# Rows explained, columns named for each, and rows that the histogram is drawn from at most.
WORST, COLUMNS, DRAWN = 8, 6, 20_000
# Rows shown even where fewer are called outliers.
FEWEST = 3
# What the reader needs to know about the rows that are explained.
KEYS = {
    "table": "The columns that speak most against a row (orange) and what else its score is the sum of. Beside them "
    "the column's value, and what it is in the nearest row that the model calls ordinary.",
    "image": "The deeper the orange of a pixel, the more it speaks against the picture; blue ones speak for it. One "
    "scale for all pictures.",
}


def write_report(
    detector: OutlierDetector,
    diagnosis: Diagnosis,
    path: Path,
    *,
    title: str = "offmanifold report",
    X: Any = None,
    normal: Any = None,
    names: list[str] | None = None,
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write the page.

    Parameters
    ----------
    detector : OutlierDetector
        Fitted.
    diagnosis : Diagnosis
        What :func:`offmanifold.diagnose` found.
    path : Path
        Written whole or not at all.
    title : str
    X : array-like or frame, optional
        Rows to judge; the most abnormal ones are explained.
    normal : array-like or frame, optional
        Normal rows, for the calibration chart.
    names : list of str, optional
        What the rows of ``X`` are called, such as file names.
    facts : mapping of str → str, optional
        How to reproduce it all.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("offmanifold.report"),
        autoescape=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    rows = detector.rows_
    summary = (
        f"{detector.key} on {detector.spec_.describe()}; {rows['training']:,} rows to learn from, {rows['stopping']:,} "
        f"to stop by, {rows['calibration']:,} to calibrate with."
    )
    text = environment.get_template("report.html.j2").render(
        title=title,
        diagnosis=diagnosis,
        summary=summary,
        judged=None if X is None else _judged(detector, X, names),
        charts=_charts(detector, diagnosis, normal),
        facts=facts or {},
    )
    atomic.write(path, text)


def _judged(detector: OutlierDetector, X: Any, names: list[str] | None) -> dict[str, Any]:
    rows = Rows(X, detector.spec_, detector.key)
    scores = detector.score_samples(X)
    p = calibration.p_values(detector.calibration_scores_, scores)
    called = int((scores < detector.offset_).sum())
    places = np.argsort(scores, kind="stable")[: min(max(called, FEWEST), WORST)]
    explanation = detector.explain(detector.spec_.arrange(rows.take(places).astype(np.float64)))
    table = detector.spec_.kind == "table"
    maps = _without_channels(explanation.contributions, detector.spec_.layout)
    most = float(np.nanmax(np.abs(maps), initial=0.0))
    shown = []
    for i, place in enumerate(places):
        name = names[place] if names else f"row {place}"
        shown.append({
            "name": name, "score": f"{scores[place]:.4g}", "p": f"{p[place]:.3g}",
            "word": "" if scores[place] < detector.offset_ else " – not called an outlier",
            "bars": _columns(explanation, i, name) if table else None,
            "pictures": [] if table else _pictures(detector, explanation, i, name, most),
        })  # fmt: skip
    drawn = scores[evenly(len(scores), DRAWN)]
    return {
        "headline": f"{called:,} of {len(scores):,} rows do not belong",
        "told": (
            f"At a false-alarm rate of {detector.false_alarm_rate:.3g}: of so many normal rows about "
            f"{detector.false_alarm_rate * len(scores):,.0f} would be called abnormal, too."
            if np.isfinite(detector.offset_)
            else "There are too few calibration rows for this false-alarm rate: no row can be called an outlier."
        ),
        "histogram": charts.histogram(
            f"Scores: {called} of {len(scores)} rows lie below the threshold",
            [("normal", detector.calibration_scores_), ("odd", drawn)],
            detector.offset_,
            f"score ({detector.score_unit})",
        ),
        "key": KEYS[detector.spec_.kind],
        "rows": shown,
    }


def _columns(explanation: Explanation, i: int, name: str) -> Markup:
    values = []
    for column, contribution, value, nearest in explanation.top(i, COLUMNS):
        found, normal = cell(value), cell(nearest)
        if contribution:
            text = f"{found or 'missing'} → {normal}" if normal and normal != found else found or "missing"
            values.append((column, contribution, text))
    values += [(name, value, f"{value:+.4g}") for name, value in explanation.beside(i).items()]
    return charts.bars(f"{name}: what columns add to its score", values)


def _pictures(
    detector: OutlierDetector, explanation: Explanation, i: int, name: str, most: float
) -> list[dict[str, str]]:
    """Return the picture, its reconstruction, the map of contributions, and the nearest normal version."""
    layout = detector.spec_.layout
    found = [("as it came", explanation.rows[i])]
    if hasattr(detector, "reconstruct"):
        found.append(("as the model has it", detector.reconstruct(explanation.rows[i : i + 1])[0]))
    if np.isfinite(explanation.nearest[i]).all():
        found.append(("nearest normal version", explanation.nearest[i]))
    pictures = [
        {"source": _data(_grey_or_colour(image, layout)), "alt": f"{name} {caption}", "caption": caption}
        for caption, image in found
    ]
    contributions = _without_channels(explanation.contributions[i : i + 1], layout)[0]
    pictures.append(
        {"source": _data(_map(contributions, most)), "alt": f"{name}: what pixels add to its score",
         "caption": "what its pixels add"}
    )  # fmt: skip
    return pictures


def _grey_or_colour(image: Float64Array, layout: str) -> Any:
    if layout == "chw":
        image = np.moveaxis(image, 0, -1)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def _without_channels(contributions: Float64Array, layout: str) -> Float64Array:
    axis = {"hwc": -1, "chw": 1}.get(layout)
    return contributions if axis is None else contributions.sum(axis)


def _map(contributions: Float64Array, most: float) -> Any:
    """Colour contributions: orange against, blue for, white none; the square root shows small ones too."""
    strength = np.sqrt(np.nan_to_num(np.abs(contributions)) / max(most, 1e-300)).clip(0, 1)[..., None]
    colours = np.where(contributions[..., None] < 0, np.array([213, 94, 0]), np.array([0, 114, 178]))
    return (255 + (colours - 255) * strength).round().astype(np.uint8)


def _data(pixels: Any) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _charts(detector: OutlierDetector, diagnosis: Diagnosis, normal: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    families = diagnosis["red team"].details.get("families")
    if families:
        rows = [(name, {kind: number["value"] for kind, number in row.items()}) for name, row in families.items()]
        key = Markup(
            'AUROC, 1 is best, ½ is guessing: <span class="key round"></span>this detector '
            '<span class="key odd"></span>nearest neighbours '
            '<span class="key other point"></span>principal components.'
        )
        chart = charts.dots("AUROC of synthetic outliers by family", rows)
        found.append({"title": "Synthetic outliers by family", "svg": chart, "caption": key})
    if normal is not None:
        p = detector.p_values(normal)
        caption = "Below the upper thin line the false-alarm rate holds for all that chance allows to say."
        # The 95 % quantile of the two-sample Kolmogorov–Smirnov statistic.
        band = 1.358 * math.sqrt(1 / len(p) + 1 / len(detector.calibration_scores_))
        chart = charts.calibration("p-values of the normal rows", p, min(band, 1.0))
        found.append({"title": "Does the false-alarm rate hold?", "svg": chart, "caption": caption})
    for phase in detector.training_summary():
        records = [record for record in detector.history_ if record["phase"] == phase]
        found += _training(phase, records)
    kl = detector.fit_report_.get("latents", {}).get("kl")
    if kl:
        values = [(f"latent {i + 1}", value, f"{value:.3f}") for i, value in enumerate(kl[:12])]
        caption = f"Nats that each latent carries about a row, the largest {len(values)} of {len(kl)}."
        found.append({"title": "Latents", "svg": charts.bars("KL of each latent", values), "caption": caption})
    return found


def _training(phase: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    steps = np.array([record["step"] for record in records], float)

    def of(name: str) -> Float64Array:
        return np.array([record.get(name, np.nan) for record in records], float)

    found = []
    loss = charts.curves(
        f"Loss and judgement over the steps of phase {phase}",
        [("normal", steps, of("loss")), ("odd", steps, of("validation"))], ("step", "loss"),
    )  # fmt: skip
    if loss is not None:
        key = Markup('<span class="key"></span>loss in training <span class="key odd"></span>judged on held-out rows.')
        found.append({"title": f"Training: {phase}", "svg": loss, "caption": key})
    for name, kind, title, caption in (
        ("gamma", "normal", "The decoder's variance", "γ in training; where it falls, gradients have to grow."),
        ("gradient_norm/latent", "other", "Gradients", "‖∂L/∂z‖ of a row, in nats."),
    ):
        label = name.removesuffix("/latent").replace("_", " ")
        chart = charts.curves(f"{title} over the steps of phase {phase}", [(kind, steps, of(name))], ("step", label))
        if chart is not None:
            found.append({"title": title, "svg": chart, "caption": caption})
    return found
