"""P3's ablations: one setting varied, digit 9 held out of MNIST. What the three studies of that kind share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from offmanifold.report.figures import dot_rows
from offmanifold.studies import mnist_holdout
from offmanifold.studies.core import SCALES, Job, Record, Study, over_seeds, shown, watched_by

DIGIT = 9
# Of training against samples, 20 epochs: P3 cuts them short for these tables (appendix C.1).
SHORTER = {"steps": 20 * 391}


class Variation(NamedTuple):
    """One row: a name, the detector, what is set, and the paper's AUROC."""

    name: str
    detector: str
    parameters: dict[str, Any]
    paper: float | None


def before_and_after(name: str, parameters: dict[str, Any], before: float, after: float) -> list[Variation]:
    """Return the rows of one NAE: its first phase alone, as one step of the second leaves it, and the whole."""
    return [
        Variation(f"{name}, autoencoder", "nae", parameters | {"steps": 1}, before),
        Variation(f"{name}, then normalised", "nae", parameters, after),
    ]


def study_of(name: str, title: str, paper: str, variations: Callable[[str], list[Variation]], note: str = "") -> Study:
    """Return the study over ``variations(scale)``."""

    def jobs(scale: str, seed: int) -> list[Job]:
        _, images, test = mnist_holdout.SIZES[scale]
        return [
            {
                "name": f"{index}-seed{seed}",
                "row": row.name,
                "detector": row.detector,
                "digit": DIGIT,
                "seed": seed,
                "train_images": images,
                "test_images": test,
                "parameters": mnist_holdout.parameters_of(row.detector, scale, {})
                | (SHORTER if scale == "paper" and row.detector == "nae" else {})
                | row.parameters,
            }
            for index, row in enumerate(variations(scale))
        ]

    papers = {row.name: row.paper for scale in SCALES for row in variations(scale)}

    def rows_of(records: list[Record]) -> Mapping[str, list[Record]]:
        ordered = sorted(records, key=lambda r: int(r["job"]["name"].split("-")[0]))
        return {
            row: [r for r in ordered if r["job"]["row"] == row]
            for row in dict.fromkeys(r["job"]["row"] for r in ordered)
        }

    def table(records: list[Record]) -> str:
        first = records[0]["job"]
        lines = [
            f"MNIST without digit {DIGIT}, AUROC of the digit. {first['train_images']:,} training images. Mean over "
            f"seeds with Student's 95 % interval where there are several. {watched_by('image')} {note}".strip(),
            "",
            "| setting | P3 | here | seeds |",
            "|---|---|---|---|",
        ]
        for row, own in rows_of(records).items():
            here = shown([r["metrics"]["auroc"]["value"] for r in own], share=True)
            theirs = papers[row]
            lines.append(f"| {row} | {'–' if theirs is None else f'{theirs:.3f}'} | {here} | {len(own)} |")
        return "\n".join(lines) + "\n"

    def figure(records: list[Record], path: Path) -> None:
        dots = []
        for row, own in rows_of(records).items():
            mean, low, high = over_seeds([r["metrics"]["auroc"]["value"] for r in own])
            dots.append((row, mean, low, high, papers[row]))
        dot_rows(path, dots, f"AUROC of digit {DIGIT}")

    return Study(
        name=name,
        title=title,
        paper=paper,
        jobs=jobs,
        run=mnist_holdout.run,
        table=table,
        figure=figure,
    )
