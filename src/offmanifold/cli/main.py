"""``offmanifold``: the commands together, and how errors are shown."""

from __future__ import annotations

import signal
import sys
import warnings
from typing import Annotated, Any

import typer

import offmanifold
from offmanifold.cli import (
    common,
    demo,
    detectors,
    diagnose,
    evaluate,
    explain,
    fit,
    inspect,
    negatives,
    report,
    score,
    study,
)
from offmanifold.parameters import InvalidParameter

app = typer.Typer(
    name="offmanifold",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (fit, score, explain, evaluate, inspect, diagnose, report, negatives, detectors, demo):
    app.command(rich_help_panel="Commands")(getattr(command, command.__name__.rsplit(".", 1)[-1]))
app.add_typer(study.app, name="study", rich_help_panel="Commands")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"offmanifold {offmanifold.__version__}")
        raise typer.Exit


# What shells expect of a program that was stopped by Ctrl-C or SIGTERM: 128 and the signal's number.
INTERRUPTED, TERMINATED = 130, 143


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """Learn what normal data look like, and tell what does not belong.

    [bold]First steps[/bold]

      offmanifold demo                                  the whole job on real data, in a minute

      offmanifold fit normal.csv --out model.safetensors

      offmanifold score model.safetensors new.csv --out scores.csv

    Exit status: 0 fine, 1 failed, 2 wrong usage, 3 a model that diagnose distrusts, 130 interrupted, 143 terminated.
    """


def main() -> None:
    """Run the command line; show a user's mistake as a paragraph, not as a traceback."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    if debug:
        arguments = ["--debug", *(a for a in arguments if a != "--debug")]
    warnings.showwarning = _tell
    if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:  # what is half done is cleared away, as after Ctrl-C
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    try:
        app(args=arguments, prog_name="offmanifold")
    except (common.UsageError, InvalidParameter) as error:
        _fail(error, 2, debug)
    except common.Stopped as error:
        _fail(error, INTERRUPTED, False)
    except SystemExit as error:
        # Typer turns a Ctrl-C into this exit status without a word.
        if error.code == INTERRUPTED:
            _fail(common.Stopped("Interrupted."), INTERRUPTED, False)
        raise
    except (ValueError, TypeError, RuntimeError, OSError, MemoryError) as error:
        _fail(error, 1, debug)
    except Exception as error:
        if not _is_polars(error):
            raise
        _fail(error, 1, debug)


def _is_polars(error: Exception) -> bool:
    """Say whether an error is polars' own, without importing polars: help is to stay quick."""
    polars = sys.modules.get("polars")
    return polars is not None and isinstance(error, polars.exceptions.PolarsError)


def _tell(message: Warning | str, *where: Any, **more: Any) -> None:
    common.note(f"Warning: {message}")


def _fail(error: BaseException, status: int, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exception(error)
        sys.exit(status)
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    elif isinstance(error, MemoryError):
        text = "Out of memory. Give fewer rows, or a smaller batch_size or network."
    common.complain(text or type(error).__name__)
    sys.exit(status)
