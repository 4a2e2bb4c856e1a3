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
from offmanifold.detectors.explanations import Explanation, cell_and_normal
from offmanifold.diagnosis.comparison import compare
from offmanifold.diagnosis.findings import Diagnosis
from offmanifold.report import charts, pictures

# Rows explained, columns named for each, and rows that the histogram is drawn from at most.
WORST, COLUMNS, DRAWN = 8, 6, 20_000
# Cells of rows that are converted at a time.
CELLS = 2**22
# Columns, or patches, whose means are compared with those of training.
PARTS = 8
# Rows shown even where fewer are called outliers.
FEWEST = 3
# What the reader needs to know about the rows that are explained.
KEYS = {
    "table": "The columns that speak most against a row (orange) and what else its score is the sum of. Beside them "
    "the column's value, and what it is in the nearest row that the model calls ordinary.",
    "image": pictures.KEY,
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
    judged = None if X is None else _judged(detector, X, names)
    compared = None if X is None else _compared(detector, X)
    if judged and compared and compared["certain"]:
        judged["told"] += (
            " But these rows are not like those of training (see below), and that rate was for rows that are."
        )
    text = environment.get_template("report.html.j2").render(
        title=title,
        diagnosis=diagnosis,
        summary=summary,
        judged=judged,
        compared=compared,
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
    explanation = detector.explain(rows.select(places))
    table = detector.spec_.kind == "table"
    shown_by_row = [] if table else pictures.explained(detector, explanation)
    shown = []
    for i, place in enumerate(places):
        name = names[place] if names else f"row {place}"
        shown.append({
            "name": name, "score": f"{scores[place]:.4g}", "p": f"{p[place]:.3g}",
            "word": "" if scores[place] < detector.offset_ else " – not called an outlier",
            "bars": _columns(explanation, i, name) if table else None,
            "pictures": [] if table else [_picture(name, picture) for picture in shown_by_row[i]],
            "far": not explanation.ordinary[i],
        })  # fmt: skip
    drawn = scores[evenly(len(scores), DRAWN)]
    return {
        "headline": f"{called:,} of {len(scores):,} rows do not belong",
        "told": (
            f"At a false-alarm rate of {detector.false_alarm_rate:.3g}: of so many normal rows "
            f"{_about(detector.false_alarm_rate * len(scores))} would be called abnormal, too."
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


def _compared(detector: OutlierDetector, X: Any) -> dict[str, Any] | None:
    """Return what the rows are like beside those of training; None where the model's file does not know these."""
    rows = Rows(X, detector.spec_, detector.key)
    chosen = evenly(len(rows), DRAWN)
    at_a_time = max(1, CELLS // detector.spec_.dimensions)
    blocks = (rows.take(chosen[start : start + at_a_time]) for start in range(0, len(chosen), at_a_time))
    found = compare(detector, blocks)
    if found is None:
        return None
    missing = "less than 0.1%" if found.missing < 0.001 else f"{found.missing:.1%}"
    told = f"{len(rows):,} row{'s' * (len(rows) != 1)}" + (
        f", {missing} of their cells missing. " if found.missing else ". "
    )
    told += found.told
    if found.certain:
        told += " Outliers among them, or a wider spread, do that as well as a change in all of them."
    moved = set(found.moved)
    values = [
        (name, gap, f"{gap:+.2f}" + (" – more than chance" if name in moved else ""))
        for name, gap in list(found.gaps.items())[:PARTS]
    ]
    return {
        "certain": found.certain,
        "told": told,
        "bars": charts.bars("Means of these rows, in standard deviations of training", values),
    }


def _about(count: float) -> str:
    """Return how many rows are to be expected, in words."""
    return "fewer than 1" if count < 0.95 else f"about {count:,.0f}"


def _columns(explanation: Explanation, i: int, name: str) -> Markup:
    values = []
    for reason in explanation.top(i, COLUMNS):
        found, normal, _ = cell_and_normal(reason.value, reason.nearest_normal)
        text = f"{found or 'missing'} → {normal}" if normal else found or "missing"
        values.append((reason.column, reason.contribution, text))
    values += [(name, value, f"{value:+.4g}") for name, value in explanation.beside(i).items()]
    return charts.bars(f"{name}: what columns add to its score", values)


def _picture(name: str, picture: pictures.Picture) -> dict[str, str]:
    buffer = io.BytesIO()
    Image.fromarray(picture.pixels).save(buffer, "PNG", optimize=True)
    source = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"source": source, "alt": f"{name} {picture.caption}", "caption": picture.caption}


def _charts(detector: OutlierDetector, diagnosis: Diagnosis, normal: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    red_team = next((finding for finding in diagnosis.findings if finding.check == "red team"), None)
    families = None if red_team is None else red_team.details.get("families")
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
        values = [(f"{i + 1}.", value, f"{value:.3f}") for i, value in enumerate(kl[:12])]
        caption = f"Nats that each latent carries about a row: {len(values)} of {len(kl)} latents, the largest first."
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
