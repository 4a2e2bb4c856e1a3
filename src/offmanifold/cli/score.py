"""``offmanifold score``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offmanifold.cli import common

if TYPE_CHECKING:
    from offmanifold.data.files import Source
    from offmanifold.detectors import OutlierDetector


def score(
    model: common.ModelArgument,
    data: common.DataArgument,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="A .csv or .parquet file to write.")] = Path(
        "scores.csv"
    ),
    array: common.ArrayOption = None,
    drop: common.DropOption = None,
    fdr: Annotated[
        float | None,
        typer.Option(
            "--fdr",
            metavar="RATE",
            help="Call outliers so that at most this share of them is false (Benjamini–Hochberg over all rows), "
            "instead of by the model's false-alarm rate.",
        ),
    ] = None,
    overwrite: common.OverwriteOption = False,
    threads: common.ThreadsOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Score rows and say which do not belong.

    Writes one line a row: row, file (pictures), score (high = normal), p_value, outlier, and the score's
    terms. Reads DATA piece by piece: a file larger than memory is fine.

    [bold]Examples[/bold]

      offmanifold score model.safetensors new.csv --out scores.csv

      offmanifold score model.safetensors pictures/ --fdr 0.1 --out scores.parquet
    """
    common.check_output(out, overwrite, (".csv", ".parquet"))
    if fdr is not None and not 0 < fdr < 1:
        raise common.UsageError(f"--fdr must lie between 0 and 1; got {fdr:g}.")
    from offmanifold.training.threads import limited_to

    detector = common.load_model(model)
    source = common.open_for(detector, data, array, drop)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder, limited_to(threads):
        summary = _write(detector, source, fdr, Path(folder) / "scores.csv", out)
    if as_json:
        common.print_json(summary)
    else:
        rule = (
            f"at most {fdr:.3g} of them false" if fdr is not None else f"false-alarm rate {detector.false_alarm_rate:g}"
        )
        typer.echo(f"{summary['outliers']:,} of {summary['rows']:,} rows called outliers ({rule}). Wrote {out}.")


def _write(detector: OutlierDetector, source: Source, fdr: float | None, draft: Path, out: Path) -> dict[str, Any]:
    """Score into ``draft`` chunk by chunk, then decide and write ``out``: false discoveries need all p-values."""
    import numpy as np
    import polars as pl

    from offmanifold import atomic, calibration
    from offmanifold.detectors.scorer import sum_terms

    all_p: list[Any] = []
    rows, names = 0, []
    with draft.open("wb") as file:
        for start, terms in common.scored_chunks(detector, source):
            scores = sum_terms(terms)
            p = calibration.p_values(detector.calibration_scores_, scores)
            rows, names = start + len(scores), list(terms)
            frame = pl.DataFrame({"row": np.arange(start, rows), "score": scores, "p_value": p, **_prefixed(terms)})
            if source.files is not None:
                frame.insert_column(1, pl.Series("file", source.files[start:rows]))
            frame.write_csv(file, include_header=start == 0)
            if fdr is not None:
                all_p.append(p)
    limit = detector.false_alarm_rate if fdr is None else calibration.discovery_threshold(np.concatenate(all_p), fdr)
    types: dict[str, Any] = {"row": pl.Int64(), "score": pl.Float64(), "p_value": pl.Float64()}
    types |= {f"term_{name}": pl.Float64() for name in names}
    # A p-value is a fraction of whole numbers; a hair's breadth keeps p = rate on the right side.
    outlier = (pl.col("p_value") <= limit + 1e-12).alias("outlier")
    order = ["row", *(["file"] if source.files is not None else []), "score", "p_value", "outlier"]
    frame_out = pl.scan_csv(draft, schema_overrides=types).with_columns(outlier)
    frame_out = frame_out.select(*order, *(f"term_{name}" for name in names))
    with atomic.replacing(out) as part:
        if out.suffix.lower() == ".parquet":
            frame_out.sink_parquet(part)
        else:
            frame_out.sink_csv(part)
    outliers = int(pl.scan_csv(draft, schema_overrides=types).select(outlier.sum()).collect().item())
    return {"rows": rows, "outliers": outliers, "p_value_limit": limit if limit > 0 else None, "scores": str(out)}


def _prefixed(terms: dict[str, Any]) -> dict[str, Any]:
    return {f"term_{name}": values for name, values in terms.items()}
