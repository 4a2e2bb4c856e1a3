"""``offmanifold demo``: the main job on real data that come with scikit-learn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from offmanifold.cli import common

HELD_OUT = 4
# What a demo writes.
FILES = ("model.safetensors", "scores.csv", "summary.json", "picture.png", "report.html")


def demo(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where to write.")] = Path("offmanifold-demo"),
    digit: Annotated[int, typer.Option("--digit", min=0, max=9, help="The digit that does not belong.")] = HELD_OUT,
    threads: common.ThreadsOption = None,
) -> None:
    """Learn nine handwritten digits, and find the tenth, which was never seen.

    Writes model.safetensors, scores.csv, summary.json, picture.png and report.html; an earlier demo is replaced.

    [bold]Example[/bold]

      offmanifold demo --digit 7 --out demo-of-7
    """
    began = time.monotonic()
    import json

    import numpy as np
    import polars as pl
    from sklearn.datasets import load_digits

    from offmanifold import atomic
    from offmanifold.detectors import VAE
    from offmanifold.diagnosis import diagnose
    from offmanifold.measures.detection import auroc, proportion
    from offmanifold.report.figures import demo_figure
    from offmanifold.report.page import write_report
    from offmanifold.training.threads import limited_to

    there = [name for name in FILES if (out / name).exists()]
    if there and len(there) < len(FILES):
        raise common.UsageError(f"{out} has a {there[0]}, and it is of no earlier demo. Give another --out.")
    out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    images, labels = digits.images / 16.0, digits.target
    belongs = np.flatnonzero(labels != digit)
    shuffled = np.random.default_rng(0).permutation(belongs)
    learn, rest = shuffled[: 3 * len(shuffled) // 4], np.sort(shuffled[3 * len(shuffled) // 4 :])
    new = np.concatenate([rest, np.flatnonzero(labels == digit)])
    typer.echo(
        f"Learning {len(learn):,} handwritten digits; the digit {digit} is not among them. "
        f"Then judging {len(new):,} new ones, {int((labels[new] == digit).sum())} of them a {digit}."
    )
    detector = VAE(random_state=0)
    with limited_to(threads):
        detector.fit(images[learn])
        scores, p = detector.score_samples(images[new]), detector.p_values(images[new])
        odd = labels[new] == digit
        diagnosis = diagnose(detector, images[new][~odd])
    detector.save(out / "model.safetensors")
    flagged = scores < detector.offset_
    frame = pl.DataFrame({"row": new, "digit": labels[new], "score": scores, "p_value": p, "outlier": flagged})
    atomic.write(out / "scores.csv", frame.write_csv())
    measured = auroc(scores[~odd], scores[odd])
    false_alarms = proportion(int(flagged[~odd].sum()), int((~odd).sum()))
    caught = proportion(int(flagged[odd].sum()), int(odd.sum()))

    worst = np.argsort(scores)[:10]
    demo_figure(
        out / "picture.png",
        normal=scores[~odd],
        outliers=scores[odd],
        threshold=detector.offset_,
        unit=detector.score_unit,
        pictures=images[new][worst],
        reconstructions=detector.reconstruct(images[new][worst]),
        captions=[f"a {labels[new][i]}, p = {p[i]:.3f}" for i in worst],
        title=f"Nine digits learned; the digit {digit} does not belong. AUROC {measured}",
    )
    write_report(
        detector, diagnosis, out / "report.html", title=f"The digit {digit} was not learned", X=images[new],
        normal=images[new][~odd], names=[f"a {label}" for label in labels[new]], facts={"command": "offmanifold demo"},
    )  # fmt: skip
    summary = {
        "held_out_digit": digit,
        "detector": detector.key,
        "auroc": measured.to_json(),
        "false_alarm_rate_asked": detector.false_alarm_rate,
        "false_alarm_rate": false_alarms.to_json(),
        "caught": caught.to_json(),
        "verdict": diagnosis.verdict,
        "failure_probability": diagnosis.failure_probability,
        "seconds": round(time.monotonic() - began, 1),
    }
    atomic.write(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    typer.echo(
        f"""
AUROC               {measured}
false alarms        {false_alarms.value:.1%} of the digits that belong (asked: {detector.false_alarm_rate:.0%})
caught              {caught.value:.1%} of the {digit}s
in                  {summary["seconds"]:.0f} s

{diagnosis.sentence}

Look at             {out / "report.html"}, {out / "picture.png"}
                    {out / "summary.json"}, {out / "scores.csv"}
Try your own file   offmanifold fit normal.csv --out model.safetensors
                    offmanifold score model.safetensors new.csv --out scores.csv
                    offmanifold diagnose model.safetensors held-out.csv"""
    )
