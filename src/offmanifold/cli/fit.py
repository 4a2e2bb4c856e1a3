"""``offmanifold fit``."""

from __future__ import annotations

import dataclasses
import secrets
import time
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offmanifold.cli import common
from offmanifold.cli.detectors import defaults
from offmanifold.parameters import did_you_mean

if TYPE_CHECKING:
    from offmanifold.detectors import OutlierDetector
    from offmanifold.diagnosis.capacity import Suggestion

CONFIG_KEYS = ("detector", "array", "drop", "columns", "threads", "parameters")
# The best of the study `tables`; of images the quicker one: `nae` is better, and takes minutes where it takes seconds.
FOR_TABLES, FOR_IMAGES = "multiscale-denoiser", "ae"
# Sizes are compared by their likelihood.
SIZED_DETECTOR = "vae"
# Takes what is not normal.
TOLD_DETECTOR = "negative-vae"
# Learns from labels.
LABELLED_DETECTOR = "semi-supervised-vae"


def fit(
    data: common.DataArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The model file to write.")] = Path(
        "model.safetensors"
    ),
    detector: Annotated[
        str | None,
        typer.Option(
            "--detector",
            metavar="NAME",
            help="See `offmanifold detectors`.",
            show_default=f"{FOR_TABLES}; {FOR_IMAGES} for images",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Set a parameter of the detector (repeatable); lists with commas."
        ),
    ] = None,
    capacity: Annotated[
        str | None,
        typer.Option(
            "--capacity",
            metavar="auto",
            help="auto: first grow latent size and width until held-out rows gain nothing more (takes vae).",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE.toml", help="Read detector, array, drop, \\[columns], threads and \\[parameters]."
        ),
    ] = None,
    negatives: Annotated[
        Path | None,
        typer.Option("--negatives", metavar="OTHER", help="Rows of what is not normal, to train against."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            "--labels",
            metavar="COLUMN",
            help="The column (array of an .npz file) of DATA with labels, of which most may be missing "
            "(takes semi-supervised-vae).",
        ),
    ] = None,
    array: common.ArrayOption = None,
    negatives_array: common.NegativesArrayOption = None,
    drop: common.DropOption = None,
    columns: common.ColumnsOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with an interrupted run of the same command.")
    ] = False,
    overwrite: common.OverwriteOption = False,
    checkpoint_every: Annotated[
        float, typer.Option("--checkpoint-every", min=0, metavar="SECONDS", help="How often to save the run.")
    ] = 30.0,
    threads: common.ThreadsOption = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")] = False,
    as_json: common.JsonOption = False,
) -> None:
    """Learn what normal rows look like, and write a model.

    The rows of DATA are taken as normal. A part of them is kept aside to calibrate decisions with. Columns of a table
    may be numbers, text, booleans and dates, with cells missing: [bold]offmanifold inspect[/bold] shows what each was
    taken for.
    Ctrl-C saves the run beside the model; the same command with --resume goes on from there.

    [bold]Examples[/bold]

      offmanifold fit normal.csv --out model.safetensors

      offmanifold fit images.npz --array x_train --detector vae --set gamma=learned --set epochs=20

      offmanifold fit people.csv --columns columns.json

      offmanifold fit sensors.parquet --drop timestamp --set false_alarm_rate=0.01 --resume

      offmanifold fit normal.csv --capacity auto

      offmanifold fit images/ --negatives not-normal/ --out model.safetensors

      offmanifold fit partly-labelled.csv --labels species --out model.safetensors
    """
    if capacity is not None and labels is not None:
        raise common.UsageError("--capacity auto does not look at labels. Give --set latent_dim and --set hidden.")
    if capacity not in (None, "auto"):
        raise common.UsageError(f"--capacity takes auto; got {capacity!r}. A factor is set with --set capacity=2.")
    chosen = _read_config(config)
    if threads is not None:
        chosen["threads"] = threads
    special = [(negatives, TOLD_DETECTOR), (labels, LABELLED_DETECTOR), (capacity, SIZED_DETECTOR)]
    usual = next((key for option, key in special if option is not None), None)
    name = detector or chosen.get("detector", usual)
    array = array or chosen.get("array")
    drop = drop or chosen.get("drop")

    checkpoint = out.with_suffix(".checkpoint")
    common.check_output(out, overwrite or (resume and checkpoint.exists()), (".safetensors",))
    search = out.with_suffix(".capacity.json")
    for saved in (checkpoint, search):
        if saved.exists() and not (resume or overwrite):
            raise common.UsageError(
                f"An interrupted run is saved in {saved}. Go on with --resume, or discard it with --overwrite."
            )
    from offmanifold.data.columns import IGNORED
    from offmanifold.data.files import open_source, read_column
    from offmanifold.detectors import DETECTORS
    from offmanifold.training.checkpoints import saved_seed
    from offmanifold.training.threads import limited_to

    if name is not None and name not in DETECTORS:
        raise common.UsageError(f"Unknown detector {name!r}.{did_you_mean(name, DETECTORS)}")
    kinds = common.read_columns(columns) or chosen.get("columns")
    text = [column for column, kind in (kinds or {}).items() if kind == "category"]

    apart = [*(drop or ()), *([labels] if labels and data.suffix.lower() in (".csv", ".parquet") else ())]
    y = None if labels is None else read_column(data, labels)
    source = open_source(data, array=array, drop=apart, text=text, lenient=("missing",) if negatives else ())
    if apart:  # of later data too
        kinds = {**(kinds or {}), **dict.fromkeys(apart, IGNORED)}
    if name is None:
        name = FOR_IMAGES if source.images else FOR_TABLES
    known = defaults(DETECTORS[name])
    values = {**chosen.get("parameters", {}), **dict(_assignment(text) for text in settings or ())}
    for key in values:
        if key not in known:
            raise common.UsageError(f"{name} has no parameter {key!r}.{did_you_mean(key, known)}")
    if checkpoint.exists() and resume:  # a run that is continued keeps its own
        values.setdefault("random_state", saved_seed(checkpoint)[1])
    elif not (search.exists() and resume):
        values.setdefault("random_state", secrets.randbelow(2**31))  # known, so that the fit can be repeated
    make: Callable[..., OutlierDetector] = DETECTORS[name]
    model = make(**{"verbose": not quiet, **values})
    if labels is not None and not hasattr(model, "predict_label"):
        raise common.UsageError(f"--labels: {name} does not learn from labels; {LABELLED_DETECTOR} does.")
    rows, told = source.load(), None
    if negatives is not None:
        # A column that is numbers among the normal rows is numbers here.
        numbers = [column for column, kind in getattr(rows, "schema", {}).items() if kind.is_numeric()]
        others = open_source(
            negatives,
            array=negatives_array or array,
            drop=apart,
            columns=[column for column in numbers if column not in text],
            text=text,
            colour=source.colour,
            lenient=common.lenient_with(negatives_array),
            option="--negatives-array",
        )
        for column in apart:
            if column not in (*source.dropped, *others.dropped):
                raise ValueError(f"Neither {data} nor {negatives} has a column {column!r} to drop.")
        told = common.loaded(others)
    if len(rows) == 0:
        raise ValueError(f"{data} holds no rows.")
    began = time.monotonic()
    if not resume:
        search.unlink(missing_ok=True)
    tried: dict[str, Any] = {}
    if capacity == "auto":
        with limited_to(chosen.get("threads")):
            sizes = _choose_capacity(model, rows, told, kinds, search, quiet)
        tried["sizes_tried"] = [dataclasses.asdict(candidate) for candidate in sizes.candidates]
        if not (quiet or as_json):
            common.table("sizes tried", *sizes.table())
    with warnings.catch_warnings(record=True) as caught, limited_to(chosen.get("threads")):
        warnings.simplefilter("always", UserWarning)  # shown at the end, below the progress
        try:
            model.fit(
                rows,
                y,
                negatives=told,
                columns=kinds,
                checkpoint=checkpoint,
                resume=resume,
                checkpoint_every=checkpoint_every,
            )
        except KeyboardInterrupt:
            raise common.Stopped(
                f"Interrupted; the run is saved in {checkpoint}. Repeat the command with --resume to go on."
                if checkpoint.exists()
                else "Interrupted before anything was saved."
            ) from None
    seconds = time.monotonic() - began
    model.save(out)
    checkpoint.unlink(missing_ok=True)
    search.unlink(missing_ok=True)
    for warning in caught:
        common.note(f"Warning: {warning.message}")
    summary: dict[str, Any] = {
        "model": str(out),
        "detector": name,
        "settings": model.settings_,
        "input": model.spec_.describe(),
        "rows": model.rows_,
        "stored_rows": model.stored_rows,
        "false_alarm_rate": model.false_alarm_rate,
        "steps": sum(phase["steps"] for phase in model.training_summary().values()),
        "seconds": round(seconds, 2),
        **tried,
    }
    if as_json:
        common.print_json(summary)
    elif not quiet:
        counts = model.rows_
        typer.echo(
            f"Learned {summary['input']} with {name} in {seconds:.1f} s: {counts['training']:,} rows to train on, "
            f"{counts['stopping']:,} to stop by, {counts['calibration']:,} to calibrate with."
        )
        if model.stored_rows:
            typer.echo(
                f"{model.stored_rows:,} of the rows are part of the model; --set store_rows=false leaves them out."
            )
        levels = [column.name for column in model.spec_.details or () if column.levels]
        if levels and not model.store_rows:
            typer.echo(f"The values that categories have are part of it all the same: {', '.join(levels)}.")
        typer.echo(f"Wrote {out}. Next:  offmanifold score {out} NEW_DATA --out scores.csv")


def _choose_capacity(
    model: OutlierDetector, rows: Any, negatives: Any, kinds: dict[str, str] | None, state: Path, quiet: bool
) -> Suggestion:
    """Set the model's size by :func:`suggest_capacity`, and return what was decided from."""
    from offmanifold.diagnosis.capacity import suggest_capacity

    try:
        found = suggest_capacity(
            model, rows, columns=kinds, negatives=negatives, state=state, report=None if quiet else common.note
        )
    except KeyboardInterrupt:
        raise common.Stopped(
            f"Interrupted; what was tried is saved in {state}. Repeat the command with --resume to go on."
        ) from None
    except TypeError as error:
        raise common.UsageError(f"--capacity auto: {error}") from error
    model.set_params(**found.parameters)
    return found


def _read_config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise common.UsageError(f"{path} does not exist.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise common.UsageError(f"{path} is not valid TOML: {error}") from error
    for key in values:
        if key not in CONFIG_KEYS:
            raise common.UsageError(f"{path}: unknown key {key!r}.{did_you_mean(key, CONFIG_KEYS)}")
    kinds = {"detector": str, "array": str, "drop": list, "columns": dict, "threads": int, "parameters": dict}
    for key, value in values.items():
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            raise common.UsageError(f"{path}: {key} must be of type {kinds[key].__name__}; got {value!r}.")
    if values.get("threads", 1) < 1:
        raise common.UsageError(f"{path}: threads must be at least 1; got {values['threads']}.")
    if not all(isinstance(column, str) for column in values.get("drop", ())):
        raise common.UsageError(f"{path}: drop must be a list of columns' names; got {values['drop']!r}.")
    return values


def _assignment(text: str) -> tuple[str, Any]:
    """Read KEY=VALUE."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise common.UsageError(f"--set takes KEY=VALUE; got {text!r}.")
    return key.strip(), _value(value.strip())


def _value(text: str) -> Any:
    """Read a value as in TOML or as Python shows it, ``none`` as None, others as text; with commas a list of them."""
    if text.lower() in ("none", "null"):
        return None
    if text.startswith("(") and text.endswith(")"):  # a tuple, as `offmanifold detectors` shows defaults
        text = f"[{text[1:-1]}]"
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        if "," in text and not text.startswith("["):
            return [_value(part.strip()) for part in text.split(",")]
        return {"True": True, "False": False}.get(text, text)
