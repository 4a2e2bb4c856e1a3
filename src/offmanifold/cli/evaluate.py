"""``offmanifold evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offmanifold.cli import common

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


def evaluate(
    model: common.ModelArgument,
    data: common.DataArgument,
    outliers: Annotated[
        Path | None,
        typer.Option("--outliers", metavar="OTHER", help="Rows that do not belong; those of DATA are then normal."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="COLUMN", help="The column (array of an .npz file) of DATA with labels."),
    ] = None,
    array: common.ArrayOption = None,
    outliers_array: Annotated[
        str | None, typer.Option("--outliers-array", metavar="NAME", help="Which array of OTHER.")
    ] = None,
    drop: common.DropOption = None,
    threads: common.ThreadsOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Measure how well a model tells outliers from normal rows.

    Labels are 0 for normal and 1 for outliers, or 1 for normal and −1 for outliers as scikit-learn has it.
    Every figure comes with a 95 % interval.

    [bold]Examples[/bold]

      offmanifold evaluate model.safetensors held-out.csv --outliers odd.csv

      offmanifold evaluate model.safetensors labelled.csv --labels is_fraud --json
    """
    if (outliers is None) == (labels is None):
        raise common.UsageError("Give either --outliers OTHER or --labels COLUMN.")
    from offmanifold.training.threads import limited_to

    detector = common.load_model(model)
    with limited_to(threads):
        if labels is not None:
            is_outlier = _read_labels(data, labels)
            table = data.suffix.lower() in (".csv", ".parquet")
            source = common.open_for(detector, data, array, [*(drop or []), *([labels] if table else [])])
            scores = common.scores_of(detector, source)
            if len(scores) != len(is_outlier):
                raise ValueError(f"{data} has {len(scores)} rows but {len(is_outlier)} labels.")
            normal, odd = scores[~is_outlier], scores[is_outlier]
        else:
            assert outliers is not None
            normal = common.scores_of(detector, common.open_for(detector, data, array, drop))
            others = common.open_for(
                detector,
                outliers,
                outliers_array or array,
                drop,
                lenient=common.lenient_with(outliers_array),
                option="--outliers-array",
            )
            odd = common.scores_of(detector, others)
    for name, scores in (("normal", normal), ("outlier", odd)):
        if len(scores) == 0:
            raise ValueError(f"There is no {name} row to evaluate on.")
    result = _report(detector, normal, odd)
    if as_json:
        common.print_json(result)
        return
    rows = [
        [title, f"{result[key]['value']:.3f}", f"{result[key]['low']:.3f} … {result[key]['high']:.3f}"]
        for title, key in (
            ("AUROC", "auroc"),
            ("AUPR", "aupr"),
            ("FPR at 95 % TPR", "fpr_at_95_tpr"),
            (f"false alarms (asked {detector.false_alarm_rate:g})", "false_alarm_rate"),
            ("outliers caught", "caught"),
        )
    ]
    common.table(
        f"{len(normal):,} normal rows, {len(odd):,} outlier{'s' if len(odd) > 1 else ''}",
        ["", "value", "95 % interval"],
        rows,
    )


def _report(detector: Any, normal: npt.NDArray[np.float64], odd: npt.NDArray[np.float64]) -> dict[str, Any]:
    from offmanifold.measures.detection import detection_report, proportion

    return {
        **detection_report(normal, odd),
        "false_alarm_rate_asked": detector.false_alarm_rate,
        "false_alarm_rate": proportion(int((normal < detector.offset_).sum()), len(normal)).to_json(),
        "caught": proportion(int((odd < detector.offset_).sum()), len(odd)).to_json(),
    }


def _read_labels(data: Path, column: str) -> npt.NDArray[np.bool_]:
    import numpy as np

    from offmanifold.data.files import read_column

    values = read_column(data, column)
    if values.ndim != 1:
        raise ValueError(f"The labels {column!r} must be one column; got shape {values.shape}.")
    kinds = set(np.unique(values).tolist()) if values.dtype.kind in "biuf" else set(map(repr, values.tolist()))
    if kinds <= {0, 1}:
        return values.astype(bool)
    if kinds <= {-1, 1}:
        return np.asarray(values == -1)
    shown = sorted(map(str, kinds))[:5]
    raise ValueError(
        f"Labels must be 0 and 1, or 1 and -1 for outliers; column {column!r} has {', '.join(shown)}"
        + (" and others." if len(kinds) > len(shown) else ".")
    )
