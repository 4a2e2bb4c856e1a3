"""``offmanifold score``."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offmanifold.cli import common

if TYPE_CHECKING:
    from offmanifold.data.files import Source
    from offmanifold.detectors import OutlierDetector

# So many times as many outliers as were asked for, and not by such a chance, are worth a word.
NOTABLE, CERTAIN = 3, 1e-6
# What the scores' own columns are called, beside their terms.
OWN = ("row", "file", "score", "p_value", "outlier")


def score(
    model: common.ModelArgument,
    data: common.DataArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A .csv or .parquet file to write.")] = Path(
        "scores.csv"
    ),
    array: common.ArrayOption = None,
    drop: common.DropOption = None,
    keep: common.KeepOption = None,
    fdr: Annotated[
        float | None,
        typer.Option(
            "--fdr",
            metavar="RATE",
            help="Call outliers so that on average at most this share of them is false (Benjamini–Hochberg over "
            "all rows), instead of by the model's false-alarm rate.",
        ),
    ] = None,
    overwrite: common.OverwriteOption = False,
    threads: common.ThreadsOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Score rows and say which do not belong.

    Writes one line a row: row, file (pictures), columns to keep, score (high = normal), p_value, outlier, and the
    score's terms. Reads DATA piece by piece: a file larger than memory is fine, unless it is an .npz file, of which an
    array is unpacked whole.

    [bold]Examples[/bold]

      offmanifold score model.safetensors new.csv --keep order_id --out scores.csv

      offmanifold score model.safetensors pictures/ --fdr 0.1 --out scores.parquet
    """
    common.check_output(out, overwrite, (".csv", ".parquet"))
    if fdr is not None and not 0 < fdr < 1:
        raise common.UsageError(f"--fdr must lie between 0 and 1; got {fdr:g}.")
    from offmanifold.training.threads import limited_to

    detector = common.load_model(model)
    if data.exists() and out.exists() and data.samefile(out):
        raise common.UsageError(f"--out would replace {data}, the rows to score. Give another.")
    kept = common.once(keep)
    source = common.open_for(detector, data, array, drop, keep=kept)
    for name in kept:
        if name in OWN or name.startswith("term_"):
            raise common.UsageError(f"--keep {name}: the scores have a column of that name. Rename yours first.")
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder, limited_to(threads):
        summary = _write(detector, source, kept, fdr, Path(folder) / "scores.csv", out)
    if as_json:
        common.print_json(summary)
    else:
        false = f"false-alarm rate {detector.false_alarm_rate:g}"
        rule = false if fdr is None else f"at most {100 * fdr:.3g}% of them false on average"
        typer.echo(f"{summary['outliers']:,} of {summary['rows']:,} rows called outliers ({rule}). Wrote {out}.")
    if remark := _remark(detector, summary, fdr, f"{model} {data}"):
        typer.echo(remark, err=True)


def _remark(detector: OutlierDetector, found: dict[str, Any], fdr: float | None, files: str) -> str:
    """Say what is odd about so many or so few outliers, or nothing."""
    from offmanifold import calibration

    known, rate = len(detector.calibration_scores_), detector.false_alarm_rate
    called, rows = found["outliers"], found["rows"]
    if fdr is None:
        by_chance = calibration.p_of_alarms(called, rows, known, rate)
        if called <= NOTABLE * rate * rows or by_chance >= CERTAIN:
            return ""
        return (
            f"So many are not {rate:g} of normal rows: either many are odd, or rows have changed and the rate no "
            f"longer holds. `offmanifold report {files}` shows which columns have moved."
        )
    if found["most_extreme"] and calibration.smallest_rate(known) > fdr:
        return (
            f"{known:,} calibration rows can call none by --fdr {fdr:g}, however many rows are scored: that takes "
            f"{calibration.rows_needed(fdr):,}. Fit with more rows or a larger calibration_fraction, or leave --fdr "
            "out."
        )
    if not called and 0 < found["most_extreme"] < found["most_extreme_needed"]:
        return (
            f"{found['most_extreme']:,} rows are more extreme than all {known:,} calibration rows, but among {rows:,} "
            f"rows it takes {found['most_extreme_needed']:,} of these, or many nearly so, before --fdr can call one. "
            "Score fewer rows at a time, fit with a larger calibration_fraction, or leave --fdr out."
        )
    return ""


def _write(
    detector: OutlierDetector, source: Source, keep: Sequence[str], fdr: float | None, draft: Path, out: Path
) -> dict[str, Any]:
    """Score into ``draft`` chunk by chunk, then decide and write ``out``: false discoveries need all p-values."""
    import numpy as np
    import polars as pl

    from offmanifold import atomic, calibration
    from offmanifold.data.scans import scan_csv
    from offmanifold.detectors.scorer import sum_terms

    all_p: list[Any] = []
    rows, names = 0, []
    types: dict[str, Any] = {"row": pl.Int64(), "score": pl.Float64(), "p_value": pl.Float64()}
    with draft.open("wb") as file:
        for start, terms, kept in common.scored_chunks(detector, source, keep):
            scores = sum_terms(terms)
            p = calibration.p_values(detector.calibration_scores_, scores)
            rows, names = start + len(scores), list(terms)
            frame = pl.DataFrame({"row": np.arange(start, rows), "score": scores, "p_value": p, **_prefixed(terms)})
            if source.files is not None:
                frame.insert_column(1, pl.Series("file", source.files[start:rows]))
            if kept is not None:
                plain = {name: kind.is_numeric() or kind == pl.Boolean for name, kind in kept.schema.items()}
                types |= {name: kind if plain[name] else pl.String() for name, kind in kept.schema.items()}
                frame = frame.hstack(kept)
            frame.write_csv(file, include_header=start == 0)
            if fdr is not None:
                all_p.append(p)
    limit = detector.false_alarm_rate if fdr is None else calibration.discovery_threshold(np.concatenate(all_p), fdr)
    types |= {f"term_{name}": pl.Float64() for name in names}
    # A p-value is a fraction of whole numbers; a hair's breadth keeps p = rate on the right side.
    outlier = (pl.col("p_value") <= limit + 1e-12).alias("outlier")
    order = ["row", *(["file"] if source.files is not None else []), *keep, "score", "p_value", "outlier"]
    frame_out = scan_csv(draft, schema_overrides=types).with_columns(outlier)
    frame_out = frame_out.select(*order, *(f"term_{name}" for name in names))
    with atomic.replacing(out) as part:
        if out.suffix.lower() == ".parquet":
            frame_out.sink_parquet(part)
        else:
            frame_out.sink_csv(part)
    outliers = int(scan_csv(draft, schema_overrides=types).select(outlier.sum()).collect().item())
    found = {"rows": rows, "outliers": outliers, "p_value_limit": limit if limit > 0 else None, "scores": str(out)}
    if fdr is None:
        return found
    known = len(detector.calibration_scores_)
    extreme = sum(int((p <= calibration.smallest_rate(known) * (1 + 1e-9)).sum()) for p in all_p)
    return found | {"most_extreme": extreme, "most_extreme_needed": calibration.discoverable(rows, known, fdr)}


def _prefixed(terms: dict[str, Any]) -> dict[str, Any]:
    return {f"term_{name}": values for name, values in terms.items()}
