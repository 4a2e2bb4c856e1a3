"""What charts, pictures and pages say are the numbers they were given."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import quick

from offmanifold import AE, diagnose
from offmanifold.detectors.explanations import Explanation
from offmanifold.report import charts
from offmanifold.report.page import write_report
from offmanifold.report.pictures import MAP, explained, write_sheet


def points(svg: str, kind: str) -> np.ndarray:
    """Return the corners of the one line or area of a class, x and y (downwards)."""
    (found,) = re.findall(rf'class="(?:line|fill) {kind}" points="([^"]*)"', svg)
    return np.array([[float(number) for number in pair.split(",")] for pair in found.split()])


def texts(svg: str) -> list[str]:
    return [html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_a_histogram_is_of_each_groups_own_rows() -> None:
    normal, odd = np.repeat([0.0, 1.0], 50), np.full(10, -1.0)
    svg = charts.histogram("t", [("normal", normal), ("odd", odd)], -0.5, "score")
    heights = {kind: charts.HEIGHT - charts.BOTTOM - points(svg, kind)[:, 1].min() for kind in ("normal", "odd")}
    assert heights["odd"] == pytest.approx(2 * heights["normal"], rel=1e-2)  # all in one bar, and half in each of two
    for kind, where in (("normal", [0.0, 1.0]), ("odd", [-1.0])):
        corners = points(svg, kind)
        filled = corners[corners[:, 1] < charts.HEIGHT - charts.BOTTOM - 1, 0]
        left, right = charts.LEFT, charts.WIDTH - charts.RIGHT
        ends = left + (np.array([min(where), max(where)]) + 1) / 2 * (right - left)
        assert np.abs([filled.min() - ends[0], filled.max() - ends[1]]).max() <= (right - left) / 40 + 1
    assert "lower" not in svg


def test_rows_far_off_do_not_hide_the_others() -> None:
    normal, odd = np.random.default_rng(0).normal(size=200), np.array([-1e9, -2e5, -9.0, -9.0, -9.0])
    svg = charts.histogram("t", [("normal", normal), ("odd", odd)], -2.0, "score")
    assert "score – 2 lower than shown" in texts(svg)
    assert np.ptp(points(svg, "normal")[:, 0]) > 0 and len(np.unique(points(svg, "normal")[:, 1])) > 5
    assert "higher" not in svg


def test_bars_lie_on_their_side_and_are_as_long_as_their_values() -> None:
    svg = charts.bars("t", [("a", -2.0, "two"), ("b", 1.0, "one")])
    found = re.findall(r'<rect class="(\w+)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    assert [kind for kind, _, _ in found] == ["odd", "normal"]
    (left, long), (right, short) = ((float(x), float(width)) for _, x, width in found)
    assert long == pytest.approx(2 * short) and left + long == pytest.approx(right)


def test_what_is_cut_can_still_be_read() -> None:
    names = ["sensor_temperature_inlet_left", "sensor_temperature_inlet_right"]
    svg = charts.bars("t", [(name, -1.0, "2025-06-07 12:34:56 → 2024-01-02 03:04:05") for name in names])
    told = texts(svg)
    assert "2025-06-07 12:34:56" in told and "→ 2024-01-02 03:04:05" in told and len(set(told)) == 5
    assert svg.count("<title>sensor_temperature_inlet_left: 2025-06-07 12:34:56 → 2024-01-02 03:04:05</title>") == 1
    assert charts.cut("abcdefgh", 8) == "abcdefgh" and charts.cut("abcdefgh", 5) == "ab…gh"
    assert charts.cut("温度温度温度", 7) == "温…度" or charts.width_of(charts.cut("温度温度温度", 7)) <= 7


def test_names_that_differ_in_their_middle_are_told_apart() -> None:
    names = [f"sensor_{i:04}_channel_temperature" for i in range(3)]
    svg = charts.bars("t", [(name, -1.0, "1") for name in [*names, "short", "a_name_of_24_letters_mm", "m" * 60]])
    told = [text for text in texts(svg) if text != "1"]
    halves = [half for i in range(3) for half in (f"sensor_{i:04}_channel_", "temperature")]
    assert told[:7] == [*halves, "short"]
    assert told[7:9] == ["a_name_of_24_letters_", "mm"]
    assert told[9] == "m" * 27 and charts.width_of(told[10]) <= 27 and "…" in told[10]


def test_dots_lie_where_their_values_are() -> None:
    svg = charts.dots("t", [("family", {"detector": 0.25, "kNN": 0.75, "PCA": 1.0})])
    at = {value: float(re.search(rf'<line class="grid" x1="([\d.]+)".*?>{value}</text>', svg)[1]) for value in ("0",)}  # type: ignore[index]
    (circle,) = re.findall(r'<circle class="detector" cx="([\d.]+)"', svg)
    (square,) = re.findall(r'<rect class="knn" x="([\d.]+)"', svg)
    assert at["0"] < float(circle) < float(square) + 4
    assert (float(square) + 4 - at["0"]) == pytest.approx(3 * (float(circle) - at["0"]), rel=1e-2)


def test_the_calibration_curve_climbs() -> None:
    svg = charts.calibration("t", np.array([0.9, 0.1, 0.5]), 0.2)
    curve = points(svg, "normal")
    assert (np.diff(curve[:, 0]) >= 0).all() and (np.diff(curve[:, 1]) <= 0).all()
    assert len(re.findall(r'class="line grid"', svg)) == 2


def test_a_page_holds_the_numbers_of_its_rows(tmp_path: Path, plane: Any) -> None:
    detector = AE(**quick(AE)).fit(plane[0])
    order = np.random.default_rng(1).permutation(60)
    X = np.concatenate([plane[0][:57], plane[1][:3]])[order]
    write_report(detector, diagnose(detector, plane[0][:60], checks=["drift"]), tmp_path / "page.html", X=X)
    text = html.unescape((tmp_path / "page.html").read_text())
    scores, p_values = detector.score_samples(X), detector.p_values(X)
    called = int((detector.predict(X) == -1).sum())
    places = np.argsort(scores)[: max(called, 3)]
    found = re.findall(r"<strong>row (\d+)</strong> – score (\S+), p-value (\S+?)( – not called an outlier)?</p>", text)
    assert f"{called} of 60 rows do not belong" in text and "of so many normal rows about 3 would" in text
    assert [(int(row), score, p) for row, score, p, _ in found] == [
        (place, f"{scores[place]:.4g}", f"{p_values[place]:.3g}") for place in places
    ]
    assert [bool(word) for *_, word in found] == [bool(scores[place] >= detector.offset_) for place in places]
    explanation = detector.explain(X[places])
    for i, place in enumerate(places):
        (reason, *_) = explanation.top(i, 6)
        assert f"<title>{reason.column}: {reason.value:.6g} → " in text.split(f"row {place}: what columns add")[1]
    assert "But these rows are not like those of training" not in text
    write_report(detector, diagnose(detector, checks=["training"]), tmp_path / "page.html", X=plane[0][:60] + 1)
    assert "that rate was for rows that are." in (tmp_path / "page.html").read_text()
    # The first bar is of rows far below the threshold, where no calibration row is.
    normal, odd = (points(text.split("<svg")[1], kind) for kind in ("normal", "odd"))
    assert odd[1, 1] < odd[0, 1] and normal[1, 1] == normal[0, 1]


def test_pictures_show_what_their_captions_say(tmp_path: Path, digits: Any) -> None:
    detector = AE(**quick(AE)).fit(digits[0][:200])
    odd = 1 - digits[0][:2]
    explanation = detector.explain(odd)
    shown = [{picture.caption: picture.pixels for picture in row} for row in explained(detector, explanation)]
    for i, pictures in enumerate(shown):
        for caption, image in (
            ("as it came", odd[i]),
            ("as the model has it", detector.reconstruct(odd)[i]),
            ("nearest normal version", explanation.nearest[i]),
        ):
            if np.isfinite(image).all():
                np.testing.assert_allclose(pictures[caption], image.clip(0, 1) * 255, atol=0.51)
        red, _, blue = pictures[MAP].astype(int).transpose(2, 0, 1)
        against, most = explanation.contributions[i] < 0, np.abs(explanation.contributions[i]).max()
        clear = np.abs(explanation.contributions[i]) > 0.01 * most
        assert (red > blue)[against & clear].all() and (red < blue)[~against & clear].all()
    long = [f"{letter * 40}-3f2a.png\np = 0.01" for letter in "ab"]
    write_sheet(tmp_path / "sheet.png", explained(detector, explanation), long)
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_what_stands_beside_the_columns() -> None:
    one = np.ones(1)
    own = {"rows": np.zeros((1, 2)), "score": -10 * one, "contributions": np.zeros((1, 2)), "nearest": np.zeros((1, 2))}
    exact = Explanation(**own, latent=np.array([[-1.0, -2.0]]), base=0.5 * one, residual=0 * one, exact=True)
    assert exact.beside(0) == {"latents": -3.0, "missing cells": 0.5}
    path = {"latent": np.zeros((1, 0)), "base": -4 * one, "exact": False, "ordinary": np.array([True])}
    assert Explanation(**own, **path, residual=-0.05 * one).beside(0) == {"nearest normal row": -4.0}
    missed = Explanation(**own, **{**path, "ordinary": np.array([False])}, residual=-0.2 * one).beside(0)
    assert missed == {"where the path begins": -4.0, "what the path misses": -0.2}
