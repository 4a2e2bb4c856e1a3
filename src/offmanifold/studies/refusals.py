"""Studies of one form: trained on one set of images, which detector refuses images of other kinds?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch

from offmanifold.data import outliers as synthetic
from offmanifold.data.benchmarks import Pixels
from offmanifold.detectors import DETECTORS
from offmanifold.detectors.chains import families_to_watch
from offmanifold.measures.detection import auroc
from offmanifold.report.figures import dot_rows
from offmanifold.studies.core import Job, Record, Study, baseline_scores, over_seeds, shown, slug, watched_by

# What the figure shows, where it has been run.
DRAWN = ("AE", "NAE-OMI", "MultiscaleDenoiser")
MADE = {"ConstantGray": "constant", "Half": "erased", "Noise": "noise"}
# Families of synthetic outliers that are, or are like, a kind that a study reports.
ALIKE = {"ConstantGray": {"constant", "faded"}, "Half": {"erased"}, "Noise": {"noise"}, "Chimera": {"mixed"}}


class Row(NamedTuple):
    """A row of the table: the detector (none for plain methods), its hyper-parameters, the paper's values by kind."""

    detector: str | None
    parameters: Mapping[str, Any] = MappingProxyType({})
    paper: Mapping[str, float] = MappingProxyType({})


class Sets(NamedTuple):
    """Images to learn, normal ones to test, and those of other kinds by name."""

    train: Pixels
    normal: Pixels
    others: dict[str, Pixels]


def made(kind: str, images: Pixels) -> Pixels:
    """Make one image of a kind of :data:`MADE` of each of ``images``, ``(n, H, W)`` or ``(n, H, W, 3)``."""
    rows = torch.from_numpy(images / 255)
    rows = rows[:, None] if rows.ndim == 3 else rows.movedim(3, 1)
    outliers = synthetic.make(MADE[kind], rows, torch.Generator().manual_seed(0))
    if kind == "ConstantGray":
        outliers = outliers[:, :1].expand_as(outliers)  # grey in colour sets too
    pixels = (outliers * 255).round().to(torch.uint8)
    return (pixels[:, 0] if images.ndim == 3 else pixels.movedim(1, 3)).numpy()


def study_of(
    *,
    name: str,
    title: str,
    paper: str,
    note: str,
    rows: Mapping[str, Row],
    kinds: Sequence[str],
    sizes: Mapping[str, tuple[int, int]],
    parameters_of: Callable[[str, str, dict[str, Any]], dict[str, Any]],
    sets: Callable[[int, int], Sets],
    colour: bool = False,
) -> Study:
    """Return the study.

    Parameters
    ----------
    name, title, paper : str
    note : str
        The first sentence above the table; may use ``{train_images}`` and ``{test_images}``.
    rows : mapping of name → Row
    kinds : sequence of str
        The table's columns; a kind that a machine lacks has "–".
    sizes : mapping of scale → training images, images of each kind to test
    parameters_of : (detector, scale, own) → hyper-parameters
    sets : (training images, test images) → Sets
    colour : bool
    """

    # Training is watched by the families that users have, but for those like what is reported.
    reported = set[str]().union(*(ALIKE.get(kind, ()) for kind in kinds))
    watch = [family for family in families_to_watch("auto", "image", colour=colour) if family not in reported]

    def jobs(scale: str, seed: int) -> list[Job]:
        images, test = sizes[scale]
        made: list[Job] = []
        for row, (key, own, _) in rows.items():
            own = dict(own) | ({"watch": watch} if key in ("nae", "igebm") else {})
            parameters = {} if key is None else parameters_of(key, scale, own)
            made.append(
                {"name": f"{slug(row)}-seed{seed}", "row": row, "detector": key, "seed": seed, "train_images": images,
                 "test_images": test, "parameters": parameters}
            )  # fmt: skip
        return made

    def run(job: Job) -> dict[str, Any]:
        train, normal, others = sets(job["train_images"], job["test_images"])
        everything = np.concatenate([normal, *others.values()])
        metrics: dict[str, Any] = {}
        if job["detector"] is None:
            scores, _ = baseline_scores(job["row"], train, everything, everything[:1])
        else:
            detector = DETECTORS[job["detector"]](**job["parameters"], random_state=job["seed"], verbose=False)
            scores = detector.fit(train).score_samples(everything)
            metrics["training"] = detector.training_summary()
        parts = np.split(scores, np.cumsum([len(normal), *map(len, others.values())])[:-1])
        metrics["auroc"] = {kind: auroc(parts[0], part).to_json() for kind, part in zip(others, parts[1:], strict=True)}
        metrics["arrays"] = {
            kind: part.astype(np.float32) for kind, part in zip(("normal", *others), parts, strict=True)
        }
        return metrics

    def values(records: list[Record], row: str, kind: str) -> list[float]:
        own = (r["metrics"]["auroc"] for r in records if r["job"]["row"] == row)
        return [aurocs[kind]["value"] for aurocs in own if kind in aurocs]

    def table(records: list[Record]) -> str:
        first = records[0]["job"]
        lines = [
            f"AUROC. {note.format(**first)} Mean over seeds with Student's 95 % interval where there are several; the "
            f"paper's value in brackets. {watched_by('image', watch)}",
            "",
            "| model | " + " | ".join(kinds) + " | seeds |",
            "|---" * (len(kinds) + 2) + "|",
        ]
        for row in rows:
            own = [values(records, row, kind) for kind in kinds]
            if any(own):
                papers = [rows[row].paper.get(kind) for kind in kinds]
                cells = [
                    shown(found, share=True) + ("" if theirs is None else f" ({theirs:.3f})")
                    for found, theirs in zip(own, papers, strict=True)
                ]
                lines.append(f"| {row} | {' | '.join(cells)} | {max(map(len, own))} |")
        return "\n".join(lines) + "\n"

    def figure(records: list[Record], path: Path) -> None:
        dots = []
        drawn = [row for row in DRAWN if any(values(records, row, kind) for kind in kinds)] or list(rows)
        for kind in kinds:
            for row in drawn:
                found = values(records, row, kind)
                if found:
                    dots.append((f"{kind} · {row}", *over_seeds(found), rows[row].paper.get(kind)))
        dot_rows(path, dots, "AUROC")

    return Study(
        name=name,
        title=title,
        paper=paper,
        jobs=jobs,
        run=run,
        table=table,
        figure=figure,
    )
