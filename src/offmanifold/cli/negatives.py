"""``offmanifold negatives``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offmanifold.cli import common


def negatives(
    model: common.ModelArgument,
    candidates: Annotated[
        list[Path],
        typer.Argument(metavar="CANDIDATES…", help="Files or folders of rows that might serve as negatives."),
    ],
    normal: Annotated[
        Path,
        typer.Option("--normal", metavar="DATA", help="Normal rows that the model was not trained on."),
    ],
    array: common.ArrayOption = None,
    negatives_array: common.NegativesArrayOption = None,
    drop: common.DropOption = None,
    threads: common.ThreadsOption = None,
    as_json: common.JsonOption = False,
) -> None:
    """Rate rows of what is not normal, before a model is trained against them.

    Good negatives can be told from normal rows, and the model does not do so yet: what counts is the headroom between
    a small classifier taught on the candidates and the model. They should also differ among themselves.

    [bold]Example[/bold]

      offmanifold negatives model.safetensors other-machine.csv noise.csv --normal held-out.csv

      offmanifold fit normal.csv --negatives other-machine.csv --out better.safetensors
    """
    from offmanifold.diagnosis.negatives import FEW, rate_negatives
    from offmanifold.training.threads import limited_to

    detector = common.load_model(model)
    rows = common.loaded(common.open_for(detector, normal, array, drop))
    # By their names alone, where those tell them apart.
    short = len({path.name for path in candidates}) == len(candidates)
    sets = {
        path.name if short else str(path): common.loaded(
            common.open_for(
                detector,
                path,
                negatives_array or array,
                drop,
                lenient=common.lenient_with(negatives_array),
                option="--negatives-array",
            )
        )
        for path in candidates
    }
    with limited_to(threads), common.telling() as report:
        found = rate_negatives(detector, rows, sets, report=report)
    if as_json:
        common.print_json([candidate.to_json() for candidate in found])
        return
    shown = [
        [
            one.name,
            f"{one.headroom:+.3f} [{one.interval[0]:+.2f}, {one.interval[1]:+.2f}]",
            f"{one.separable:.3f}",
            f"{one.known:.3f}",
            f"{one.distance:.2f}",
            f"{one.diversity:.2f}",
            f"{one.caught.value:.0%}",
        ]
        for one in found
    ]
    common.table(
        "the most useful first",
        ["candidates", "headroom", "separable", "known", "distance", "diversity", "caught"],
        shown,
    )
    typer.echo(
        "headroom = separable − known: AUROC of a classifier taught on the candidates, less the model's own. Distance "
        "and\ndiversity: 1 is as among normal rows. Caught: the share that the model calls outliers already."
    )
    few = [one.name for one in found if one.rows < FEW]
    if few:
        common.note(f"Fewer than {FEW} rows say little: {', '.join(few)}.")
