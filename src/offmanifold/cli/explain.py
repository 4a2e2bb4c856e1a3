"""``offmanifold explain``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offmanifold.cli import common

if TYPE_CHECKING:
    from offmanifold.detectors import OutlierDetector
    from offmanifold.detectors.explanations import Explanation

# The sheet of pictures, unless another is named.
SHEET = Path("explanation.png")


def explain(
    model: common.ModelArgument,
    data: common.DataArgument,
    worst: Annotated[int, typer.Option("--worst", min=1, metavar="N", help="Explain the N most abnormal rows.")] = 5,
    row: Annotated[
        list[int] | None, typer.Option("--row", min=0, metavar="N", help="Explain this row instead (repeatable).")
    ] = None,
    top: Annotated[int, typer.Option("--top", min=1, metavar="N", help="Of tables: columns to name for each row.")] = 3,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Of pictures: the .png to draw.", show_default=str(SHEET)),
    ] = None,
    array: common.ArrayOption = None,
    drop: common.DropOption = None,
    keep: common.KeepOption = None,
    overwrite: common.OverwriteOption = False,
    threads: common.ThreadsOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Say why rows are abnormal: what speaks against them, and what would be normal.

    Of a table: beside a column stands what it adds to the score. What the other columns add, and what a model adds
    beside columns (latents, or the score where a path to the row begins), make up the rest. In brackets stand the
    value in the nearest row that the model calls ordinary, and between what values nine in ten calibration rows lie.

    Of pictures: a sheet with each picture as it came, as the model has it, its nearest normal version, and a map of
    what its pixels add to the score.

    [bold]Examples[/bold]

      offmanifold explain model.safetensors new.csv

      offmanifold explain model.safetensors new.csv --row 17 --top 5 --json

      offmanifold explain model.safetensors new.csv --keep order_id

      offmanifold explain model.safetensors pictures/ --worst 8 --out why.png
    """
    from offmanifold.training.threads import limited_to

    detector = common.load_model(model)
    pictured = detector.spec_.kind == "image"
    if out is not None and not pictured:
        raise common.UsageError(f"--out draws pictures; {model} was trained on {detector.spec_.describe()}.")
    sheet = out or SHEET
    if pictured:
        common.check_output(sheet, overwrite, (".png",))
        if data.is_dir() and sheet.resolve().parent == data.resolve():
            raise common.UsageError(f"{sheet} would be one of the pictures in {data}. Give another --out.")
    names = common.once(keep)
    source = common.open_for(detector, data, array, drop, keep=names)
    rows, kept = common.kept_apart(detector, common.loaded(source), names)
    with limited_to(threads):
        places, explanation = _explained(detector, rows, worst, row or [])
    found = [
        {**_name(place, source.files, kept), **one}
        for place, one in zip(places.tolist(), _told(detector, explanation, top), strict=True)
    ]
    if pictured:
        from offmanifold.report.pictures import explained, write_sheet

        called = [one.get("file", f"row {one['row']}") for one in found]
        captions = [f"{name}\np = {one['p_value']:.3g}" for name, one in zip(called, found, strict=True)]
        write_sheet(sheet, explained(detector, explanation), captions)
    if as_json:
        common.print_json({
            "score_unit": detector.score_unit, "rows": found, **({"pictures": str(sheet)} if pictured else {})
        })  # fmt: skip
        return
    columns = ["row", *names, f"score ({detector.score_unit})", "p-value"]
    shown = [
        [one.get("file", f"{one['row']}"), *_cells(one), f"{one['score']:.4g}", f"{one['p_value']:.3g}"]
        for one in found
    ]
    if not pictured:
        columns.append("because of")
        shown = [[*cells, "\n".join(_lines(one))] for cells, one in zip(shown, found, strict=True)]
    common.table(str(data), columns, shown)
    if pictured:
        typer.echo(f"Wrote {sheet}: as they came, as the model has them, their nearest normal versions, maps.")


def _explained(detector: OutlierDetector, X: Any, worst: int, chosen: list[int]) -> tuple[Any, Explanation]:
    """Return the places of the rows that are explained, and what is to be said of them."""
    import numpy as np

    from offmanifold.data.inputs import Rows

    rows = Rows(X, detector.spec_, detector.key)
    outside = [index for index in chosen if index >= len(rows)]
    if outside:
        raise ValueError(f"--row {outside[0]}: the data have rows 0 to {len(rows) - 1}.")
    places = np.array(chosen) if chosen else np.argsort(detector.score_samples(X), kind="stable")[:worst]
    return places, detector.explain(rows.select(places))


def _name(place: int, files: list[str] | None, kept: Any) -> dict[str, Any]:
    """Return what says which row it is."""
    file = {} if files is None else {"file": files[place]}
    return {"row": place, **file, **({} if kept is None else {"kept": kept.row(place, named=True)})}


def _told(detector: OutlierDetector, explanation: Explanation, top: int) -> list[dict[str, Any]]:
    from offmanifold import calibration

    p = calibration.p_values(detector.calibration_scores_, explanation.score)
    told = []
    for i, score in enumerate(explanation.score.tolist()):
        one: dict[str, Any] = {"score": score, "p_value": float(p[i])}
        if detector.spec_.kind == "table":
            one["because"] = [reason._asdict() for reason in explanation.top(i, top)]
        told.append({**one, "beside_columns": explanation.beside(i), "found_normal": bool(explanation.ordinary[i])})
    return told


def _cells(one: dict[str, Any]) -> list[str]:
    from offmanifold.detectors.explanations import cell

    return [cell(value) for value in one.get("kept", {}).values()]


def _lines(one: dict[str, Any]) -> list[str]:
    beside = (f"{name}: {value:+.3g}" for name, value in one["beside_columns"].items())
    because = [_because(reason) for reason in one["because"]] or ["no column"]
    return [*because, *beside, *([] if one["found_normal"] else ["no row nearby that the model calls ordinary"])]


def _because(one: dict[str, Any]) -> str:
    from offmanifold.detectors.explanations import cell_and_normal

    found, normal, usual = cell_and_normal(one["value"], one["nearest_normal"], one["usual"] or ())
    told = [f"normal: {normal}"] if normal else []
    if usual:
        told.append("usual: {} to {}".format(*usual))
    brackets = f" ({'; '.join(told)})" if told else ""
    return f"{one['column']} = {found or 'missing'}{brackets}: {one['contribution']:+.3g}"
