"""``offmanifold diagnose``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offmanifold.cli import common

if TYPE_CHECKING:
    from offmanifold.diagnosis import Diagnosis

DISTRUSTED = 3
COLOURS = {"fine": "green", "warn": "yellow", "fail": "red"}


def diagnose(
    model: common.ModelArgument,
    data: Annotated[
        Path | None,
        typer.Argument(metavar="[DATA]", help="Normal rows that the model has not seen: a file or folder."),
    ] = None,
    array: common.ArrayOption = None,
    drop: common.DropOption = None,
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            metavar="TIME",
            help="Such as 30s or 1h (two refits fit in). auto: a quarter of the training time.",
        ),
    ] = "auto",
    threads: common.ThreadsOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Say whether a model may be trusted, and why, without a single outlier.

    Synthetic outliers are made from the normal rows, searches try to fool the model, nearest neighbours and principal
    components stand beside it. Without DATA the calibration rows in the model's file are looked at: whether the
    false-alarm rate holds, and whether rows that come now are still like those of training, they cannot tell.

    Exit status 3: do not trust it.

    [bold]Examples[/bold]

      offmanifold diagnose model.safetensors

      offmanifold diagnose model.safetensors held-out.csv

      offmanifold diagnose model.safetensors held-out.csv --json || echo "not in production"
    """
    from offmanifold import diagnosis
    from offmanifold.training.threads import limited_to

    common.check_has_data(data, array, drop)
    detector = common.load_model(model)
    rows = None if data is None else common.loaded(common.open_for(detector, data, array, drop))
    with limited_to(threads), common.telling() as report:
        found = diagnosis.diagnose(detector, rows, budget=budget, report=report)
    if as_json:
        common.print_json(found.to_json())
    else:
        _show(model, found)
    if found.verdict == "distrust":
        raise typer.Exit(DISTRUSTED)


def _show(model: Path, found: Diagnosis) -> None:
    """Print findings as a table, what could not be examined by reason, and the verdict."""
    examined = [one for one in found.findings if one.verdict != "not examined"]
    rows = [
        [one.check, one.verdict, "" if one.number is None else str(one.number), f"{one.told} {one.advice}".strip()]
        for one in examined
    ]
    styles = [COLOURS.get(one.verdict, "dim") for one in examined]
    common.table(str(model), ["check", "", "number [95 %]", "finding"], rows, styles)
    left_out: dict[str, list[str]] = {}
    for one in found.findings:
        if one.verdict == "not examined":
            left_out.setdefault(f"{one.told} {one.advice}".strip(), []).append(one.check)
    for reason, checks in left_out.items():
        typer.echo(f"Not examined: {', '.join(checks)}. {reason}")
    colour = {"trust": "green", "care": "yellow", "distrust": "red"}[found.verdict]
    typer.secho(found.sentence, fg=colour, bold=True)
    if found.weighing_most:
        typer.echo(f"What weighs most: {' and '.join(found.weighing_most)}.")
    if found.rows < found.given:
        typer.echo(f"Looked at {found.rows:,} of {found.given:,} rows, evenly spread.")
    if found.stored:
        typer.echo(f"Looked at {found.rows:,} calibration rows of the model's file.")
    if found.given == 0:
        typer.echo("Give normal rows for the rest:  offmanifold diagnose MODEL DATA")
