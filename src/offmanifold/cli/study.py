"""``offmanifold study``: reproduce the papers' tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offmanifold.cli import common
from offmanifold.parameters import did_you_mean

if TYPE_CHECKING:
    from offmanifold.studies import Study

HELP = """Reproduce the tables of the papers.

[bold]Examples[/bold]

  offmanifold study list

  offmanifold study run fashion-vs-mnist --scale laptop
"""
app = typer.Typer(no_args_is_help=True, help=HELP, rich_markup_mode="rich")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="See `offmanifold study list`.")]
ScaleOption = Annotated[
    str,
    typer.Option(
        "--scale", metavar="SCALE", help="smoke (seconds), laptop (2 cores, minutes to many hours) or paper (a GPU)."
    ),
]
ResultsOption = Annotated[Path, typer.Option("--results", metavar="FOLDER", help="Where results lie.")]


@app.command("list")
def list_(as_json: common.JsonOption = False) -> None:
    """List the studies.

    [bold]Example[/bold]

      offmanifold study list --json
    """
    from offmanifold.studies import STUDIES

    if as_json:
        common.print_json({name: {"title": study.title, "paper": study.paper} for name, study in STUDIES.items()})
    else:
        rows = [[name, study.title, study.paper] for name, study in STUDIES.items()]
        common.table(None, ["name", "question", "paper"], rows)
        common.papers_in(" ".join(paper for _, _, paper in rows))


@app.command()
def run(
    name: NameArgument,
    scale: ScaleOption = "laptop",
    seed: Annotated[
        list[int] | None, typer.Option("--seed", metavar="N", min=0, help="Run this seed alone (repeatable).")
    ] = None,
    only: Annotated[
        str, typer.Option("--only", metavar="PATTERN", help="Run the jobs with such a name alone: 'nae-*'.")
    ] = "*",
    results: ResultsOption = Path("results"),
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Jobs side by side; they share the cores.")] = 1,
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against", metavar="NAME=PATH", help="Score images of your own too: a folder or file (capacity alone)."
        ),
    ] = None,
) -> None:
    """Run a study's missing jobs, then write its table and figure. Stop and start it as you like.

    [bold]Example[/bold]

      offmanifold study run fashion-vs-mnist --scale laptop
    """
    study = _find(name, scale)
    from offmanifold.studies.core import folder_of, run_study

    seeds = list(dict.fromkeys(seed)) if seed else None
    try:
        run_study(
            study, scale, results=results, seeds=seeds, only=only, jobs=jobs, against=_named(against or []),
            report=common.note,
        )  # fmt: skip
    except KeyboardInterrupt as stopped:
        raise common.Stopped("Interrupted. The same command goes on with the jobs that are not done yet.") from stopped
    folder = folder_of(study, scale, results)
    typer.echo((folder / "table.md").read_text())
    typer.echo(f"Figure: {folder / 'figure.png'}")


@app.command()
def show(name: NameArgument, scale: ScaleOption = "laptop", results: ResultsOption = Path("results")) -> None:
    """Print a study's table from the results at hand.

    [bold]Example[/bold]

      offmanifold study show fashion-vs-mnist --scale laptop
    """
    study = _find(name, scale)
    from offmanifold.studies.core import summarise

    records = summarise(study, scale, results=results, report=common.note)
    if not records:
        raise ValueError(
            f"There are no results of {name} at scale {scale} in {results}. "
            f"Run  offmanifold study run {name} --scale {scale}  first."
        )
    typer.echo(study.table(records))


def _named(against: list[str]) -> dict[str, str]:
    named = {}
    for text in against:
        name, _, path = text.partition("=")
        if not name or not path or not Path(path).exists():
            raise common.UsageError(f"--against takes NAME=PATH with a path that exists; got {text!r}.")
        named[name] = str(Path(path).resolve())
    return named


def _find(name: str, scale: str) -> Study:
    from offmanifold.studies import STUDIES
    from offmanifold.studies.core import SCALES

    if scale not in SCALES:
        raise common.UsageError(f"Unknown scale {scale!r}.{did_you_mean(scale, SCALES)}")
    if name not in STUDIES:
        raise common.UsageError(f"Unknown study {name!r}.{did_you_mean(name, STUDIES)}")
    return STUDIES[name]
