"""``offmanifold report``."""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from offmanifold.cli import common


def report(
    model: common.ModelArgument,
    data: Annotated[
        Path | None, typer.Argument(metavar="[DATA]", help="New rows to judge: the most abnormal ones are explained.")
    ] = None,
    normal: Annotated[
        Path | None,
        typer.Option("--normal", metavar="ROWS", help="Normal rows that the model has not seen, to examine it."),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The .html file to write.")] = Path(
        "report.html"
    ),
    array: common.ArrayOption = None,
    drop: common.DropOption = None,
    keep: common.KeepOption = None,
    budget: Annotated[
        str, typer.Option("--budget", metavar="TIME", help="For the examination, such as 30s or 2min.")
    ] = "auto",
    overwrite: common.OverwriteOption = False,
    threads: common.ThreadsOption = None,
) -> None:
    """Write one page on a model: may it be trusted, which rows do not belong, and why.

    The file opens from disk, loads nothing and runs nothing.

    [bold]Examples[/bold]

      offmanifold report model.safetensors new.csv --normal held-out.csv --keep order_id

      offmanifold report model.safetensors
    """
    common.check_output(out, overwrite, (".html",))
    common.check_has_data(data or normal, array, drop)
    if keep and data is None:
        raise common.UsageError("--keep names columns of the rows to judge, and there are none. Give some.")
    from offmanifold.data.inputs import Rows
    from offmanifold.diagnosis import diagnose
    from offmanifold.report.page import write_report
    from offmanifold.storage import read
    from offmanifold.training.threads import limited_to

    detector = common.load_model(model)
    columns = common.once(keep)
    source = None if data is None else common.open_for(detector, data, array, drop, keep=columns)
    rows = None if normal is None else common.loaded(common.open_for(detector, normal, array, drop))
    header, _ = read(model)
    new, kept = (None, None) if source is None else common.kept_apart(detector, common.loaded(source), columns)
    names = None if source is None else source.files if kept is None else _names(kept)
    if new is not None:
        Rows(new, detector.spec_, detector.key).take(slice(None))  # a bad value is better found before the examination
    facts = {
        "the model's fit": fit_again(header),
        "this page": shlex.join(["offmanifold", *sys.argv[1:]]),
        "model": str(model.resolve()),
        "sha256 of the model": hashlib.sha256(model.read_bytes()).hexdigest(),
        **({"data": str(data.resolve())} if data else {}),
        "detector": detector.key,
        "settings": ", ".join(f"{name}={value}" for name, value in detector.settings_.items()),
        "made with": ", ".join(f"{name} {version}" for name, version in header["made_with"].items()),
    }
    with limited_to(threads), common.telling() as tell:
        diagnosis = diagnose(detector, rows, budget=budget, report=tell)
        tell("Writing the page")
        write_report(
            detector, diagnosis, out, title=f"{model.name}: may it be trusted?",
            X=new, normal=rows, names=names, facts=facts,
        )  # fmt: skip
    typer.echo(f"{diagnosis.sentence} Wrote {out}.")


def _names(kept: Any) -> list[str]:
    """Return what rows are called by the columns that are kept of them."""
    from offmanifold.detectors.explanations import cell

    told = (", ".join(f"{name} = {cell(value)}" for name, value in row.items()) for row in kept.iter_rows(named=True))
    return [f"row {i}, {text}" for i, text in enumerate(told)]


def fit_again(header: Mapping[str, Any]) -> str:
    """Return the command that fits the model of a file's header again, where its rows are at hand."""
    from offmanifold.cli.detectors import defaults
    from offmanifold.detectors import DETECTORS

    words = ["offmanifold", "fit", "DATA", "--detector", header["detector"]]
    usual = defaults(DETECTORS[header["detector"]])
    for name, value in header["parameters"].items():
        text, told = json.dumps(value), json.dumps(usual.get(name))  # a tuple is a list there
        if name not in ("verbose", "device") and text != told:
            words += ["--set", f"{name}={value if isinstance(value, str) else text}"]
    if hasattr(DETECTORS[header["detector"]], "predict_label"):
        words += ["--labels", "LABELS"]
    if "given" in header["settings"].get("negatives", ()):
        words += ["--negatives", "NEGATIVES"]
    for column in header["input"].get("ignored", ()):
        words += ["--drop", column]
    # A file does not say of a table what its columns were said to be.
    more = "  # and --columns as it was" if header["input"]["kind"] == "table" else ""
    return shlex.join(words) + more
