"""What the commands share: options, messages, reading data."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offmanifold.parameters import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from offmanifold.data.files import Source
    from offmanifold.detectors import OutlierDetector

# How many bytes of a data file are read at a time.
CHUNK_BYTES = 32 * 2**20

DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="A .csv, .parquet, .npy or .npz file, or a folder of PNG or JPEG pictures of one size.",
    ),
]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="A model that `offmanifold fit` wrote.")]
ArrayOption = Annotated[
    str | None, typer.Option("--array", metavar="NAME", help="Which array of an .npz file holds the rows.")
]
DropOption = Annotated[
    list[str] | None,
    typer.Option("--drop", metavar="COLUMN", help="Leave out a column of the table (repeatable)."),
]
KeepOption = Annotated[
    list[str] | None,
    typer.Option(
        "--keep",
        metavar="COLUMN",
        help="Give a column of the table beside what is found, such as the rows' names (repeatable).",
    ),
]
ColumnsOption = Annotated[
    Path | None,
    typer.Option(
        "--columns",
        metavar="FILE.json",
        help='What columns are where their type does not tell: {"name": "number", "category", "boolean", "date" or '
        '"ignored"}.',
    ),
]
NegativesArrayOption = Annotated[
    str | None,
    typer.Option("--negatives-array", metavar="NAME", help="Which array of an .npz file holds what is not normal."),
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="N", help="Processor threads to use. Default: PyTorch's."),
]


class UsageError(ValueError):
    """The command line itself is wrong: exit status 2."""


class Stopped(Exception):
    """The user stopped the command."""


def complain(text: str) -> None:
    """Write an error to standard error as one paragraph."""
    typer.secho("Error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(" ".join(text.split()), err=True)


def note(text: str) -> None:
    """Write a remark to standard error, where it does not mix with results."""
    typer.echo(text, err=True)


def print_json(values: Any) -> None:
    """Print strict JSON."""
    typer.echo(json.dumps(strict(values), indent=2, allow_nan=False))


def strict(values: Any) -> Any:
    """Replace what JSON has no word for: infinities and NaN by None, dates and decimals by text."""
    if isinstance(values, dict):
        return {key: strict(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [strict(value) for value in values]
    if isinstance(values, float) and (values != values or values in (float("inf"), float("-inf"))):
        return None
    return str(values) if isinstance(values, datetime.date | datetime.time | decimal.Decimal) else values


def check_output(path: Path, overwrite: bool, suffixes: tuple[str, ...]) -> None:
    """Refuse an output that exists, lies in no folder, cannot be written, or has an unknown ending."""
    import os

    if path.suffix.lower() not in suffixes:
        raise UsageError(f"--out must end in {' or '.join(suffixes)}; got {path}.")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists. Give --overwrite to replace it, or another --out.")
    folder = path.parent
    if not folder.is_dir():
        raise UsageError(f"The folder {folder} of --out does not exist.")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"The folder {folder} of --out cannot be written to.")


def check_has_data(data: Path | None, array: str | None, drop: list[str] | None) -> None:
    """Refuse options that say how to read data where none are given."""
    for option, value in (("--array", array), ("--drop", drop)):
        if value and data is None:
            raise UsageError(f"{option} says how to read data, and there are none. Give some, or leave it out.")


def load_model(path: Path) -> OutlierDetector:
    """Load a model file."""
    from offmanifold.storage import load

    return load(path)


def open_for(
    detector: OutlierDetector,
    data: Path,
    array: str | None,
    drop: list[str] | None,
    *,
    keep: Sequence[str] = (),
    lenient: Collection[str] = (),
    option: str = "--array",
) -> Source:
    """Open data that are to be scored by ``detector``; ``lenient`` and ``option`` as for :func:`open_source`.

    Columns to ``keep`` that the detector does not look at come as they stand in the file: see :func:`kept_apart`. A
    column to drop need not be there: what the detector does not know is an error by itself.
    """
    from offmanifold.data.files import open_source

    spec = detector.spec_
    numbers: Sequence[str] = spec.columns or ()
    text = [*spec.ignored, *(name for name in keep if name not in numbers)]
    if spec.details is not None:
        numbers = [column.name for column in spec.details if column.kind == "number" and not column.text]
        text += [column.name for column in spec.details if column.text or column.kind == "category"]
    colour = spec.kind == "image" and spec.shape[0] == 3
    source = open_source(
        data,
        array=array,
        drop=drop or (),
        columns=numbers,
        text=text,
        colour=colour,
        lenient={*lenient, "missing"},
        option=option,
    )
    _check_kept(keep, source)
    return source


def once(names: list[str] | None) -> list[str]:
    """Return the names that a repeatable option was given, each once."""
    return list(dict.fromkeys(names or ()))


def _check_kept(keep: Sequence[str], source: Source) -> None:
    """Raise an error for columns that cannot stand beside a result."""
    for name in keep:
        if not source.columns:
            raise UsageError(f"--keep names columns of a .csv or .parquet file; {source.path} has none.")
        if name not in source.columns:
            raise ValueError(f"{source.path} has no column {name!r} to keep.{did_you_mean(name, source.columns)}")
        if name in source.unwritable:
            raise ValueError(
                f"--keep {name}: {source.path} holds lists, structures, bytes or durations there, which a .csv file "
                "cannot. Turn them into text or numbers first."
            )


def kept_apart(detector: OutlierDetector, rows: Any, keep: Sequence[str]) -> tuple[Any, Any]:
    """Return the rows for ``detector`` to look at, and a frame of the columns to ``keep``, None without any."""
    if not keep:
        return rows, None
    return rows.drop([name for name in keep if name not in (detector.spec_.columns or ())]), rows.select(keep)


def lenient_with(own_array: str | None) -> tuple[str, ...]:
    """Return which options were meant for the normal rows' file, and need not fit that of the other rows."""
    return ("drop",) if own_array else ("array", "drop")


def read_columns(path: Path | None) -> dict[str, str] | None:
    """Read what columns are from a JSON file of names and kinds."""
    if path is None:
        return None
    try:
        kinds = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UsageError(f"{path} does not exist.") from error
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(kinds, dict) or not all(isinstance(kind, str) for kind in kinds.values()):
        raise UsageError(f'{path} must hold names of columns and their kinds: {{"name": "category", …}}.')
    return kinds


def scored_chunks(
    detector: OutlierDetector, source: Source, keep: Sequence[str] = ()
) -> Iterator[tuple[int, dict[str, npt.NDArray[np.float64]], Any]]:
    """Yield (first row, score terms, columns to ``keep``) chunk by chunk, with progress on a terminal."""
    rows = max(1, CHUNK_BYTES // (8 * detector.spec_.dimensions))
    start = blank = 0
    with _counter(sys.stderr.isatty()) as advance:
        for chunk in source.chunks(rows):
            own, kept = kept_apart(detector, chunk, keep)
            terms = detector.score_terms(own)
            yield start, terms, kept
            count = len(next(iter(terms.values())))
            start += count
            blank += _blank(chunk)
            advance(count)
    _check_rows(source, start, blank)


def loaded(source: Source) -> Any:
    """Return all rows of a source."""
    rows = source.load()
    _check_rows(source, len(rows), _blank(rows))
    return rows


def _blank(rows: Any) -> int:
    """Return how many rows of a frame hold nothing."""
    if not hasattr(rows, "null_count"):  # an array
        return 0
    import polars as pl

    return int(rows.select(pl.all_horizontal(pl.all().is_null()).sum()).item())


def _check_rows(source: Source, rows: int, blank: int) -> None:
    if rows == 0:
        raise ValueError(f"{source.path} holds no rows.")
    if blank:
        note(
            f"Warning: {blank:,} of the {rows:,} rows of {source.path} hold nothing, as blank lines do. They count "
            "like others: leave them out."
        )


class _counter:
    def __init__(self, shown: bool) -> None:
        self._bar: Any = None
        if shown:
            from rich.console import Console
            from rich.progress import Progress, SpinnerColumn, TextColumn

            self._bar = Progress(
                SpinnerColumn(), TextColumn("scored {task.completed:,} rows"), console=Console(stderr=True)
            )

    def __enter__(self) -> Any:
        if self._bar is None:
            return lambda count: None
        self._bar.start()
        task = self._bar.add_task("score", total=None)
        return lambda count: self._bar.advance(task, count)

    def __exit__(self, *arguments: object) -> None:
        if self._bar is not None:
            self._bar.stop()


@contextlib.contextmanager
def telling() -> Iterator[Callable[[str], None]]:
    """Give a function that shows what is being done, in one line on a terminal and nowhere else."""
    if not sys.stderr.isatty():
        yield lambda text: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield lambda text: status.update(text)


def scores_of(detector: OutlierDetector, source: Source) -> npt.NDArray[np.float64]:
    """Return the scores of a whole source."""
    import numpy as np

    from offmanifold.detectors.scorer import sum_terms

    return np.concatenate([sum_terms(terms) for _, terms, _ in scored_chunks(detector, source)])


def paragraphs(text: str) -> None:
    """Print a text, its lines broken to the terminal's width."""
    from rich.console import Console
    from rich.text import Text

    Console().print(Text(text))


# By these names documentation and studies refer to them.
PAPERS = {
    "P0": "When do variational autoencoders know what they don't know? (anonymous, 2019)",
    "P1": "Csiszárik, Benkő, Varga: Negative sampling in variational autoencoders (2019)",
    "P2": "Yacoby, Pan, Doshi-Velez: Failures of variational autoencoders and their effects on downstream tasks (2020)",
    "P3": "Yoon, Noh, Park: Autoencoding under normalization constraints (2021)",
    "P4": "Dai, Wenliang, Wipf: On the value of infinite gradients in variational autoencoder models (2021)",
}


def papers_in(text: str) -> None:
    """Say what those papers are that a text calls P0 to P4."""
    named = [[label, title] for label, title in PAPERS.items() if re.search(rf"\b{label}\b", text)]
    if named:
        typer.echo()
        table(None, ["", "paper"], named)


def table(title: str | None, columns: list[str], rows: list[list[str]], styles: list[str] | None = None) -> None:
    """Print a table; ``styles`` colours the rows' second cells. Brackets are the user's own, never markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title=None if title is None else Text(title),
        title_justify="left",
        box=None,
        pad_edge=False,
        header_style="bold",
    )
    for column in columns:
        shown.add_column(Text(column), overflow="fold")
    for i, row in enumerate(rows):
        shown.add_row(*(Text(cell, styles[i] if styles and j == 1 else "") for j, cell in enumerate(row)))
    Console().print(shown)
