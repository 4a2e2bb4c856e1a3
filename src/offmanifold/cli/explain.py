"""``offmanifold explain``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from offmanifold.cli import common

if TYPE_CHECKING:
    from offmanifold.detectors import OutlierDetector


def explain(
    model: common.ModelArgument,
    data: common.DataArgument,
    worst: Annotated[int, typer.Option("--worst", min=1, metavar="N", help="Explain the N most abnormal rows.")] = 5,
    row: Annotated[
        list[int] | None, typer.Option("--row", min=0, metavar="N", help="Explain this row instead (repeatable).")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="Columns to name for each row.")] = 3,
    array: common.ArrayOption = None,
    drop: common.DropOption = None,
    threads: common.ThreadsOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Say why rows of a table are abnormal: the columns that speak against them, and what would be normal.

    Beside a column stands what it adds to the score. What the other columns add, and what a model adds beside columns
    (latents, or the score where a path to the row begins), make up the rest. The value in brackets is that of the
    nearest row that the model calls ordinary. Maps of pictures: detector.explain(images) in Python.

    [bold]Examples[/bold]

      offmanifold explain model.safetensors new.csv

      offmanifold explain model.safetensors new.csv --row 17 --top 5 --json
    """
    from offmanifold.training.threads import limited_to

    detector = common.load_model(model)
    if detector.spec_.kind != "table":
        raise ValueError(
            f"{model} was trained on {detector.spec_.describe()}, and explain names columns of tables. "
            "In Python, detector.explain(images).contributions are maps."
        )
    rows = common.open_for(detector, data, array, drop).load()
    with limited_to(threads):
        found = _explained(detector, rows, worst, row or [], top)
    if as_json:
        common.print_json({"score_unit": detector.score_unit, "rows": found})
        return
    shown = [[str(one["row"]), f"{one['score']:.4g}", f"{one['p_value']:.3g}", "\n".join(_lines(one))] for one in found]
    common.table(str(data), ["row", f"score ({detector.score_unit})", "p-value", "because of"], shown)


def _explained(detector: OutlierDetector, X: Any, worst: int, chosen: list[int], top: int) -> list[dict[str, Any]]:
    import numpy as np

    from offmanifold import calibration
    from offmanifold.data.inputs import Rows

    rows = Rows(X, detector.spec_, detector.key)
    outside = [index for index in chosen if index >= len(rows)]
    if outside:
        raise ValueError(f"--row {outside[0]}: the data have rows 0 to {len(rows) - 1}.")
    places = np.array(chosen) if chosen else np.argsort(detector.score_samples(X), kind="stable")[:worst]
    explanation = detector.explain(rows.take(places))
    p = calibration.p_values(detector.calibration_scores_, explanation.score)
    told = []
    for i, place in enumerate(places):
        because = [_plain(reason._asdict()) for reason in explanation.top(i, top) if reason.contribution]
        one = {"row": int(place), "score": float(explanation.score[i]), "p_value": float(p[i])}
        told.append({**one, "because": because, "beside_columns": explanation.beside(i)})
    return told


def _plain(reason: dict[str, Any]) -> dict[str, Any]:
    """Return a reason as JSON has it: dates as text."""
    return {key: value if isinstance(value, int | float | str | None) else str(value) for key, value in reason.items()}


def _lines(one: dict[str, Any]) -> list[str]:
    beside = (f"{name}: {value:+.3g}" for name, value in one["beside_columns"].items())
    return [*map(_because, one["because"]), *beside]


def _because(one: dict[str, Any]) -> str:
    from offmanifold.detectors.explanations import cell

    normal = cell(one["nearest_normal"])
    found = cell(one["value"])
    shown = f" (normal: {normal})" if normal and normal != found else ""
    return f"{one['column']} = {found or 'missing'}{shown}: {one['contribution']:+.3g}"
