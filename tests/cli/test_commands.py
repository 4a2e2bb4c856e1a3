"""Every command, run as a user runs it."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import offmanifold
from offmanifold import AE, calibration, measures, storage
from offmanifold.cli import common
from offmanifold.cli.main import app, main
from offmanifold.detectors import DETECTORS

COMMAND = [sys.executable, "-m", "offmanifold.cli"]
QUICK = ["--set", "steps=60", "--set", "hidden=[32]", "--set", "random_state=0"]


def run(*arguments: object, cwd: Path, status: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == status, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def complaint(*arguments: object, cwd: Path, status: int, **options: Any) -> str:
    """Run what must fail; return the one paragraph that says why."""
    done = run(*arguments, cwd=cwd, status=status, **options)
    assert "Traceback" not in done.stderr
    return " ".join(done.stderr.replace("│", " ").split())


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory, plane: Any) -> Path:
    """A folder with normal rows, odd ones, labelled ones, and a model."""
    folder = tmp_path_factory.mktemp("work")
    normal, odd = plane
    names = list("abcde")
    pl.DataFrame(normal, schema=names, orient="row").write_csv(folder / "normal.csv")
    pl.DataFrame(odd, schema=names, orient="row").write_csv(folder / "odd.csv")
    both = pl.DataFrame(np.concatenate([normal, odd]), schema=names, orient="row")
    both.with_columns(bad=pl.Series([0] * len(normal) + [1] * len(odd))).write_parquet(folder / "both.parquet")
    run("fit", "normal.csv", *QUICK, "--out", "model.safetensors", cwd=folder)
    return folder


# --- the main road -------------------------------------------------------------------------------------


def test_fit_says_what_it_did_and_what_to_do_next(work: Path) -> None:
    done = run("fit", "normal.csv", *QUICK, "-o", "again.safetensors", cwd=work)
    assert "a table of 5 columns" in done.stdout
    assert "Next:  offmanifold score again.safetensors" in done.stdout
    assert done.stderr == ""
    assert not (work / "again.checkpoint").exists()
    one, two = (storage.read(work / name)[1] for name in ("model.safetensors", "again.safetensors"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    shown = json.loads(run("fit", "normal.csv", *QUICK, "-o", "j.safetensors", "--json", cwd=work).stdout)
    assert shown["rows"] == {"training": 280, "stopping": 40, "calibration": 80}


def test_an_image_model_takes_no_more_than_its_name(tmp_path: Path) -> None:
    """`fit images.npz --detector nae --out m.safetensors`; fewer steps than by default, to save time."""
    images = np.random.default_rng(0).integers(0, 255, (80, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", images=images)
    less = ["--set", "steps=2", "--set", "pretraining_steps=2"]
    run("fit", "images.npz", "--detector", "nae", *less, "--out", "m.safetensors", cwd=tmp_path)
    told = json.loads(run("inspect", "m.safetensors", "--json", cwd=tmp_path).stdout)
    assert told["detector"] == "nae" and list(told["training"]) == ["autoencoder", "normalisation"]
    assert set(told["training"]["normalisation"]["auroc_against"]) >= {"erased", "mixed", "patches"}
    scores = run("score", "m.safetensors", "images.npz", "--out", "s.csv", cwd=tmp_path)
    assert "80" in scores.stdout and len(pl.read_csv(tmp_path / "s.csv")) == 80


def test_a_fit_can_be_repeated_from_what_its_file_says(work: Path) -> None:
    run("fit", "normal.csv", *QUICK[:4], "--detector", "ae", "-o", "first.safetensors", cwd=work)
    seed = offmanifold.load(work / "first.safetensors").random_state
    command = ("fit", "normal.csv", "--detector", "ae", "-o", "repeated.safetensors", "--set", f"random_state={seed}")
    run(*command, *QUICK[:4], cwd=work)
    rows = pl.read_csv(work / "normal.csv")
    one, other = (offmanifold.load(work / f"{name}.safetensors") for name in ("first", "repeated"))
    np.testing.assert_array_equal(one.score_samples(rows), other.score_samples(rows))


def test_score_writes_what_the_library_says(work: Path) -> None:
    run("score", "model.safetensors", "odd.csv", "--out", "scores.csv", cwd=work)
    table = pl.read_csv(work / "scores.csv")
    detector = offmanifold.load(work / "model.safetensors")
    rows = pl.read_csv(work / "odd.csv")
    assert table.columns == [
        "row",
        "score",
        "p_value",
        "outlier",
        *(f"term_{t}" for t in detector.score_terms(rows)),
    ]
    np.testing.assert_array_equal(table["score"].to_numpy(), detector.score_samples(rows))
    np.testing.assert_array_equal(table["p_value"].to_numpy(), detector.p_values(rows))
    np.testing.assert_array_equal(table["outlier"].to_numpy(), detector.predict(rows) == -1)
    assert table["row"].to_list() == list(range(len(rows)))


def test_score_with_false_discovery_control(work: Path) -> None:
    shown = json.loads(
        run(
            "score",
            "model.safetensors",
            "both.parquet",
            "--drop",
            "bad",
            "--fdr",
            0.1,
            "-o",
            "s.parquet",
            "--json",
            cwd=work,
        ).stdout
    )
    table = pl.read_parquet(work / "s.parquet")
    expected = offmanifold.false_discoveries(table["p_value"].to_numpy(), 0.1)
    np.testing.assert_array_equal(table["outlier"].to_numpy(), expected)
    assert shown["outliers"] == expected.sum() > 0
    assert shown["most_extreme_needed"] == calibration.discoverable(500, 80, 0.1)
    assert shown["rows"] == len(table) == 500


def test_evaluate_by_other_rows_and_by_labels(work: Path) -> None:
    by_rows = json.loads(
        run("evaluate", "model.safetensors", "normal.csv", "--outliers", "odd.csv", "--json", cwd=work).stdout
    )
    by_labels = json.loads(
        run("evaluate", "model.safetensors", "both.parquet", "--labels", "bad", "--json", cwd=work).stdout
    )
    assert by_rows == by_labels
    assert by_rows["auroc"]["low"] < by_rows["auroc"]["value"] <= by_rows["auroc"]["high"]
    assert by_rows["auroc"]["value"] > 0.9
    text = run("evaluate", "model.safetensors", "normal.csv", "--outliers", "odd.csv", cwd=work).stdout
    assert "AUROC" in text and "false alarms (asked 0.05)" in text
    for key in ("auroc", "aupr", "fpr_at_95_tpr", "false_alarm_rate", "caught"):
        assert "{value:.3f} {low:.3f} … {high:.3f}".format(**by_rows[key]) in " ".join(text.replace("│", " ").split())
    detector = offmanifold.load(work / "model.safetensors")
    assert by_rows["caught"]["value"] == (detector.predict(pl.read_csv(work / "odd.csv")) == -1).mean()
    signs = pl.read_parquet(work / "both.parquet").with_columns(bad=1 - 2 * pl.col("bad"))
    signs.write_csv(work / "signs.csv")
    assert (
        json.loads(run("evaluate", "model.safetensors", "signs.csv", "--labels", "bad", "--json", cwd=work).stdout)
        == by_rows
    )


def test_inspect(work: Path) -> None:
    facts = json.loads(run("inspect", "model.safetensors", "--json", cwd=work).stdout)
    assert facts["columns"] == list("abcde")
    assert facts["calibration"]["rows"] == 80
    assert facts["calibration"]["rate_in_95_of_100_fits"] == list(calibration.rate_range(80, 0.05))
    assert facts["history"][-1]["step"] == 60
    assert "a table of 5 columns" in run("inspect", "model.safetensors", cwd=work).stdout


def test_inspect_answers_the_three_questions(work: Path) -> None:
    run("fit", "normal.csv", "--detector", "vae", "--set", "random_state=0", "-o", "vae.safetensors", cwd=work)
    facts = json.loads(run("inspect", "vae.safetensors", "--json", cwd=work).stdout)
    assert list(facts["answers"]) == ["latent size", "capacity", "gradients"]
    assert facts["latents"]["kl"] == sorted(facts["latents"]["kl"], reverse=True)
    shown = " ".join(run("inspect", "vae.safetensors", cwd=work).stdout.split())
    assert "latents are active (more than 0.01 nats a row)" in shown
    assert "learned 0.1, closed form 0." in shown


def test_inspect_measures_on_rows(work: Path) -> None:
    run("fit", "normal.csv", "--detector", "vae", "--set", "random_state=0", "-o", "measured.safetensors", cwd=work)
    command = ("inspect", "measured.safetensors", "--data", "normal.csv")
    found = json.loads(run(*command, "--json", cwd=work).stdout)["on_data"]
    detector, rows = offmanifold.load(work / "measured.safetensors"), pl.read_csv(work / "normal.csv")
    assert found["rows"] == len(rows)
    assert found["reconstruction_error"] == measures.reconstruction_error(detector, rows).to_json()
    assert found["optimal_gamma"] == measures.optimal_gamma(detector, rows).to_json()
    assert found["aggregate_mmd"] == measures.aggregate_mmd(detector, rows).to_json()
    np.testing.assert_allclose(found["latents"]["kl"], measures.latent_kl(detector, rows), rtol=0.2)
    assert found["latents"]["active"] == len(measures.active_latents(detector, rows))
    assert "on data, their KL (nats)" in " ".join(run(*command, cwd=work).stdout.split())
    plain = json.loads(run("inspect", "model.safetensors", "--data", "normal.csv", "--json", cwd=work).stdout)[
        "on_data"
    ]
    assert list(plain) == ["rows", "reconstruction_error"]


def test_diagnose_says_whether_to_trust(work: Path) -> None:
    run("fit", "normal.csv", "--set", "random_state=0", "-o", "good.safetensors", cwd=work)
    found = json.loads(run("diagnose", "good.safetensors", "normal.csv", "--json", cwd=work).stdout)
    assert found["verdict"] in ("trust", "care") and found["rows"] == 400
    assert [finding["check"] for finding in found["findings"]][:3] == ["training", "latents", "scaling"]
    shown = " ".join(run("diagnose", "model.safetensors", cwd=work).stdout.split())
    assert "Not examined: calibration, drift" in shown and "offmanifold diagnose MODEL DATA" in shown
    # Rows that are not those of training: the exit status says so to a pipeline.
    assert "Do not trust this detector" in run("diagnose", "model.safetensors", "odd.csv", cwd=work, status=3).stdout
    found = json.loads(run("diagnose", "model.safetensors", "odd.csv", "--json", cwd=work, status=3).stdout)
    (finding,) = (finding for finding in found["findings"] if finding["check"] == "calibration")
    assert finding["verdict"] == "fail" and "stranger than those of calibration" in finding["told"]
    assert "budget must be" in complaint("diagnose", "model.safetensors", "--budget", "soon", cwd=work, status=2)


def test_explain_names_columns(work: Path) -> None:
    frame = pl.read_csv(work / "normal.csv").with_columns(c=pl.col("c") + 50.0 * (pl.int_range(pl.len()) == 7))
    frame.write_csv(work / "one_odd.csv")
    command = ("explain", "model.safetensors", "one_odd.csv")
    (found,) = json.loads(run(*command, "--worst", 1, "--json", cwd=work).stdout)["rows"]
    assert found["row"] == 7 and found["p_value"] < 0.02
    assert "c" in [reason["column"] for reason in found["because"]]
    assert found["because"][0]["contribution"] < 0
    both = (*command, "--row", 3, "--row", 7, "--top", 2)
    ordinary, odd = (one["because"] for one in json.loads(run(*both, "--json", cwd=work).stdout)["rows"])
    assert ordinary == [] and "c" in [reason["column"] for reason in odd] and len(odd) <= 2
    assert all(reason["contribution"] < 0 for reason in odd)
    shown = run(*both, cwd=work).stdout
    # An ordinary row is its own nearest normal one: no column speaks for or against it.
    assert "because of" in shown and shown.count("no column") == 1 and shown.count(" = ") == len(odd)
    assert "--out draws pictures" in complaint(*command, "--out", "why.png", cwd=work, status=2)
    assert "the data have rows 0 to 399" in complaint(*command, "--row", 400, cwd=work, status=1)


def test_explanations_and_reports_name_rows_by_a_column_that_is_kept(work: Path) -> None:
    frame = pl.read_csv(work / "normal.csv").with_columns(c=pl.col("c") + 50.0 * (pl.int_range(pl.len()) == 7))
    names = {"order": pl.Series([f"n{400 - i}" for i in range(400)]), "paid": pl.Series([datetime.time(9)] * 400)}
    frame.with_columns(**names).write_parquet(work / "orders.parquet")
    keep = ("--keep", "order", "--keep", "paid", "--keep", "a")
    command = ("explain", "model.safetensors", "orders.parquet", "--row", 7, *keep)
    (found,) = json.loads(run(*command, "--json", cwd=work).stdout)["rows"]
    assert found["kept"] == {"order": "n393", "paid": "09:00:00", "a": frame["a"][7]}
    shown = " ".join(run(*command, cwd=work).stdout.split())
    assert "row order paid a score" in shown and "7 n393 09:00:00" in shown
    run("report", "model.safetensors", "orders.parquet", *keep, "--budget", "1s", "-o", "orders.html", cwd=work)
    page = (work / "orders.html").read_text()
    assert "row 7, order = n393, paid = 09:00:00, a = " in page and "row 7<" not in page
    assert "there are none" in complaint("report", "model.safetensors", "--keep", "a", cwd=work, status=2)


def test_files_that_are_cut_off_blank_or_without_names_are_told_of(work: Path) -> None:
    lines = (work / "normal.csv").read_text().splitlines(keepends=True)
    score = ("score", "model.safetensors")
    (work / "cut.csv").write_text("".join(lines)[: len("".join(lines)) - 30])
    (work / "blank.csv").write_text("\n".join(lines[:11]))  # a blank line after each
    for name, told in (
        ("cut.csv", "ends within a row, which has"),
        ("blank.csv", "10 of the 20 rows of blank.csv hold"),
    ):
        done = run(*score, name, "-o", f"of-{name}", cwd=work)
        assert told in done.stderr, done.stderr
    assert "hold nothing" in run("diagnose", "model.safetensors", "blank.csv", "--budget", "1s", cwd=work).stderr
    (work / "nameless.csv").write_text("".join(lines[1:]))
    done = run("fit", "nameless.csv", "--detector", "ae", *QUICK, "-o", "nameless.safetensors", cwd=work)
    assert "numbers alone in its first line" in done.stderr
    assert "Warning" not in run(*score, "normal.csv", "-o", "of-whole.csv", cwd=work).stderr


def test_names_with_brackets_are_no_markup(work: Path) -> None:
    frame = pl.read_csv(work / "normal.csv").head(40).with_columns(pl.lit("n").alias("n[/a]"))
    frame.write_csv(work / "new [final].csv")
    shown = run("explain", "model.safetensors", "new [final].csv", "--keep", "n[/a]", "--worst", 1, cwd=work).stdout
    assert shown.startswith("new [final].csv") and "n[/a]" in shown


def test_a_column_to_drop_may_be_in_one_of_two_files_alone(work: Path) -> None:
    pl.read_csv(work / "odd.csv").with_columns(id=pl.lit("n")).write_csv(work / "odd-id.csv")
    drop = ("--drop", "id")
    run("evaluate", "model.safetensors", "normal.csv", "--outliers", "odd-id.csv", *drop, cwd=work)
    fit = ("fit", "normal.csv", "--negatives", "odd-id.csv", *QUICK, "-o", "dropped.safetensors")
    run(*fit, *drop, cwd=work)
    assert "Neither normal.csv nor odd-id.csv has a column 'ids'" in complaint(
        *fit, "--drop", "ids", "--overwrite", cwd=work, status=1
    )


def test_a_demo_replaces_no_ones_files(work: Path) -> None:
    (work / "theirs").mkdir()
    (work / "theirs" / "report.html").write_text("theirs")
    assert "report.html, and it is of no earlier demo" in complaint("demo", "--out", "theirs", cwd=work, status=2)


def test_explain_draws_pictures(tmp_path: Path, digits: Any) -> None:
    images = (digits[0] * 255).astype(np.uint8)
    np.save(tmp_path / "normal.npy", images[:200])
    folder = tmp_path / "new"
    folder.mkdir()
    for name, image in (("usual.png", images[200]), ("row odd.png", 255 - images[201])):
        Image.fromarray(image).save(folder / name)
    run("fit", "normal.npy", "--set", "steps=30", "--set", "random_state=0", cwd=tmp_path)
    among = complaint("explain", "model.safetensors", "new", "-o", "new/why.png", cwd=tmp_path, status=2)
    assert "would be one of the pictures in new" in among
    told = run("explain", "model.safetensors", "new", "--worst", 1, cwd=tmp_path).stdout
    assert "row odd.png" in told and "usual.png" not in told and "Wrote explanation.png" in told
    with Image.open(tmp_path / "explanation.png") as sheet:
        assert sheet.width > sheet.height > 100
    again = ("explain", "model.safetensors", "new", "--json")
    assert "explanation.png exists" in complaint(*again, cwd=tmp_path, status=2)
    found = json.loads(run(*again, "--row", 0, "--out", "why.png", cwd=tmp_path).stdout)
    assert found["pictures"] == "why.png" and (tmp_path / "why.png").exists()
    assert set(found["rows"][0]) == {"row", "file", "score", "p_value", "beside_columns", "found_normal"}
    both = json.loads(run(*again, "--out", "why.png", "--overwrite", cwd=tmp_path).stdout)["rows"]
    assert [(one["row"], one["file"]) for one in both] == [(0, "row odd.png"), (1, "usual.png")]
    detector = offmanifold.load(tmp_path / "model.safetensors")
    p_values = detector.p_values(np.stack([np.asarray(Image.open(folder / one["file"])) for one in both]))
    assert [one["p_value"] for one in both] == p_values.tolist() and p_values[0] < p_values[1]


def test_a_table_of_all_kinds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 300
    code = rng.integers(1, 4, n)
    frame = pl.DataFrame({
        "id": range(n),
        "code": [f"0{c}" for c in code],  # would be read as numbers
        "town": np.array(["Győr", "Pécs", "Eger"])[code - 1],
        "paid": code == 2,
        "day": pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 1, 1, 1), "12s", eager=True)[:n],
        "amount": [None if i % 9 == 0 else f"{2 * c + rng.normal(0, 0.1):.2f}" if i % 10 else "?"
                   for i, c in enumerate(code)],
    })  # fmt: skip
    frame.write_csv(tmp_path / "normal.csv")
    (tmp_path / "columns.json").write_text('{"code": "category", "amount": "number"}')
    told = run("fit", "normal.csv", "--columns", "columns.json", "--detector", "vae", *QUICK, cwd=tmp_path)
    assert "a table of 6 columns (2 numbers, 2 categories, 1 boolean, 1 date)" in told.stdout
    assert "'id' looks like an identifier" in told.stderr and "--drop id" in told.stderr
    facts = json.loads(run("inspect", "model.safetensors", "--json", cwd=tmp_path).stdout)
    assert facts["columns"]["code"] == "category of 3 levels: 01, 02, 03"
    assert facts["columns"]["amount"] == "number" and facts["columns"]["day"] == "date, trend alone"
    shown = run("inspect", "model.safetensors", cwd=tmp_path).stdout
    assert re.search(r"town +category of 3 levels: Eger, Győr, Pécs", shown)
    frame[:40].with_columns(town=pl.lit("Vác"), amount=pl.lit("?")).write_csv(tmp_path / "new.csv")
    run("score", "model.safetensors", "new.csv", cwd=tmp_path)
    scores = pl.read_csv(tmp_path / "scores.csv")
    detector = offmanifold.load(tmp_path / "model.safetensors")
    levels = frame[:40].with_columns(town=pl.lit("Vác"), amount=pl.lit(None, pl.Float64))
    np.testing.assert_allclose(scores["score"], detector.score_samples(levels), rtol=1e-9)
    told = run("explain", "model.safetensors", "new.csv", "--worst", 2, "--top", 6, cwd=tmp_path).stdout
    assert "town = Vác (a level not seen in training)" in " ".join(told.split()) and "amount" not in told
    (reason,) = [
        one
        for one in json.loads(run("explain", "model.safetensors", "new.csv", "--row", 3, "--top", 6, "--json",
                                  cwd=tmp_path).stdout)["rows"][0]["because"]
        if one["column"] == "day"
    ]  # fmt: skip
    assert reason["value"].startswith("2024-01-01 00:00:36")


def test_capacity_auto(work: Path) -> None:
    command = ("fit", "normal.csv", "--capacity", "auto", "--set", "steps=100")
    command += ("--set", "random_state=0", "-o", "sized.safetensors")
    done = run(*command, cwd=work)
    assert "sizes tried" in done.stdout and "best so far" in done.stdout
    assert done.stderr.count("latent size") == done.stderr.count(" nats; ") >= 3
    assert not list(work.glob("sized.*[!s]")), "what the search kept is gone"
    facts = json.loads(run(*command, "--overwrite", "--json", cwd=work).stdout)
    chosen = [tried for tried in facts["sizes_tried"] if tried["verdict"] == "best so far"][-1]
    assert facts["detector"] == "vae"
    assert facts["settings"]["latent_dim"] == chosen["latent_dim"]
    assert facts["settings"]["hidden"] == [128 * chosen["width"]] * 2
    refused = complaint(
        "fit", "normal.csv", "--detector", "ae", "--capacity", "auto", "-o", "x.safetensors", cwd=work, status=2
    )
    assert "AE has none" in refused and "Use VAE" in refused
    (work / "sized.capacity.json").write_text("{}")
    refused = complaint(*command, "--overwrite", "--resume", cwd=work, status=1)
    assert "sized.capacity.json is not the state of a search" in refused
    (work / "sized.safetensors").unlink()
    refused = complaint(*command, cwd=work, status=2)
    assert "An interrupted run is saved in sized.capacity.json. Go on with --resume" in refused
    (work / "sized.capacity.json").unlink()
    refused = complaint("fit", "normal.csv", "--capacity", "2", "-o", "x.safetensors", cwd=work, status=2)
    assert "--capacity takes auto; got '2'. A factor is set with --set capacity=2." in refused


def test_detectors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = run("detectors", cwd=tmp_path).stdout
    assert all(name in text for name in DETECTORS)
    shown = json.loads(run("detectors", "vae", "--json", cwd=tmp_path).stdout)
    assert shown["vae"]["parameters"]["beta"] == 1.0
    monkeypatch.setenv("COLUMNS", "400")
    for name, cls in DETECTORS.items():
        page = CliRunner().invoke(app, ["detectors", name]).stdout
        told = re.findall(r"^([a-z]\w+) ", page.partition("meaning")[2], flags=re.MULTILINE)
        assert sorted(told) == sorted(cls().get_params()), name
        assert not re.search(r"As (for|in) |:class:|``", page), "what another detector's page says is said here"
        body, _, legend = re.sub("\n *\n", "\n\n", page).rpartition("\n\n")
        assert set(re.findall(r"\bP[0-4]\b", body)) == set(re.findall(r"^P\d", legend, flags=re.MULTILINE)), name
        assert re.search(r"optimizer +'\w+' +\{(\"auto\", )?\"adam\", \"adamw\", \"rmsprop\"\}", page)
    assert "Did you mean 'vae'" in complaint("detectors", "vea", cwd=tmp_path, status=2)


def test_pictures_and_arrays(tmp_path: Path, digits: Any) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(digits[0][:40]):
        Image.fromarray((image * 255).astype(np.uint8)).save(folder / f"{i:03}.png")
    np.savez(tmp_path / "d.npz", x=(digits[0][:100] * 255).astype(np.uint8), y=digits[1][:100])
    run("fit", "d.npz", "--array", "x", "--detector", "vae", *QUICK, "-o", "m.safetensors", cwd=tmp_path)
    run("score", "m.safetensors", "pictures", cwd=tmp_path)
    table = pl.read_csv(tmp_path / "scores.csv")
    assert table.columns[:3] == ["row", "file", "score"]
    assert table["file"].to_list()[:2] == ["000.png", "001.png"]
    run("score", "m.safetensors", "d.npz", "--array", "x", "-o", "a.csv", cwd=tmp_path)
    np.testing.assert_array_equal(pl.read_csv(tmp_path / "a.csv")["score"][:40].to_numpy(), table["score"].to_numpy())


def test_pictures_in_another_layout_than_in_training(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 6, 7, 3), dtype=np.uint8)
    (tmp_path / "pictures").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "pictures" / f"{i:03}.png")
    np.save(tmp_path / "chw.npy", np.moveaxis(pixels, -1, 1))
    np.save(tmp_path / "hwc.npy", pixels)
    run("fit", "chw.npy", "--detector", "ae", *QUICK, "-o", "m.safetensors", cwd=tmp_path)
    found = []
    for name in ("chw.npy", "hwc.npy", "pictures"):
        run("score", "m.safetensors", name, "-o", f"{name}.csv", cwd=tmp_path)
        found.append(pl.read_csv(tmp_path / f"{name}.csv")["score"].to_list())
    assert found[0] == found[1] == found[2]


def test_brackets_in_file_names_are_no_patterns(work: Path) -> None:
    some = pl.read_csv(work / "normal.csv")
    some.head(3).write_csv(work / "k1.csv")
    some.slice(3, 5).write_csv(work / "k[1].csv")
    some.slice(3, 5).write_parquet(work / "k[1].parquet")
    some.head(3).write_parquet(work / "k1.parquet")
    for name in ("k[1].csv", "k[1].parquet"):
        done = run("score", "model.safetensors", name, "-o", f"of-{name}", "--json", cwd=work)
        assert json.loads(done.stdout)["rows"] == 5
    assert len(pl.read_csv(work / "of-k[1].csv", glob=False)) == 5


def test_numbers_of_21_digits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ids = [10**20 + int(i) for i in rng.integers(0, 10**6, 60)]
    frame = pl.DataFrame({"id": ids, "x": rng.normal(size=60), "kind": ["u", "v"] * 30})
    frame.write_csv(tmp_path / "mixed.csv")
    frame.drop("kind").write_csv(tmp_path / "plain.csv")
    for name in ("mixed.csv", "plain.csv"):
        run("fit", name, "--detector", "ae", *QUICK, "-o", f"{name}.safetensors", cwd=tmp_path)
        run("score", f"{name}.safetensors", name, "--keep", "id", "-o", f"of-{name}", cwd=tmp_path)
        assert len(pl.read_csv(tmp_path / f"of-{name}")) == 60
    frame.write_parquet(tmp_path / "wide.parquet")
    run("fit", "plain.csv", "--drop", "id", "--detector", "ae", *QUICK, "-o", "x.safetensors", cwd=tmp_path)
    run("score", "x.safetensors", "wide.parquet", "--drop", "kind", "--keep", "id", "-o", "k.parquet", cwd=tmp_path)
    assert pl.read_parquet(tmp_path / "k.parquet")["id"].to_list() == ids


def test_a_column_kept_twice_is_kept_once(work: Path) -> None:
    pl.read_csv(work / "odd.csv").with_columns(name=pl.lit("n")).write_csv(work / "named-odd.csv")
    names = ["--keep", "name", "--keep", "a", "--keep", "name"]
    run("score", "model.safetensors", "named-odd.csv", *names, "-o", "twice-kept.csv", cwd=work)
    assert pl.read_csv(work / "twice-kept.csv").columns[:4] == ["row", "name", "a", "score"]


def test_polars_errors_are_shown_as_paragraphs(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    def fail(**_: Any) -> None:
        raise pl.exceptions.InvalidOperationError("no such operation")

    monkeypatch.setattr("offmanifold.cli.main.app", fail)
    monkeypatch.setattr(sys, "argv", ["offmanifold"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1 and capfd.readouterr().err == "Error: no such operation\n"


def test_a_command_that_is_terminated_clears_away_what_is_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def terminated(**_: Any) -> None:
        with tempfile.TemporaryDirectory(dir=tmp_path):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("offmanifold.cli.main.app", terminated)
    monkeypatch.setattr(sys, "argv", ["offmanifold"])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert stopped.value.code == 143 and not list(tmp_path.iterdir())


def test_the_outliers_may_lie_in_the_array_of_the_same_name(work: Path) -> None:
    for name in ("normal", "odd"):
        rows = pl.read_csv(work / f"{name}.csv").to_numpy()
        np.savez(work / f"{name}.npz", rows=rows, other=rows[:, :2])
    by = ["--outliers", "odd.npz", "--json"]
    one = run("evaluate", "model.safetensors", "normal.npz", "--array", "rows", *by, cwd=work).stdout
    assert one == run("evaluate", "model.safetensors", "normal.csv", "--outliers", "odd.csv", "--json", cwd=work).stdout
    two = run("evaluate", "model.safetensors", "normal.csv", *by, "--outliers-array", "rows", cwd=work).stdout
    assert one == two


def test_a_column_left_out_is_left_out_of_later_data_and_may_be_kept(work: Path) -> None:
    named = pl.read_csv(work / "normal.csv").with_columns(pl.Series('the "name"', [f"n{i}" for i in range(400)]))
    named.write_csv(work / "named.csv")
    run("fit", "named.csv", "--drop", 'the "name"', "--drop", "e", *QUICK, "-o", "m.safetensors", cwd=work)
    assert json.loads(run("inspect", "m.safetensors", "--json", cwd=work).stdout)["columns_left_out"] == [
        'the "name"',
        "e",
    ]
    run("score", "m.safetensors", "named.csv", "--keep", 'the "name"', "--keep", "a", "-o", "kept.parquet", cwd=work)
    table = pl.read_parquet(work / "kept.parquet")
    assert table.columns[:4] == ["row", 'the "name"', "a", "score"]
    assert table.select('the "name"', "a").equals(named.select('the "name"', "a"))
    detector = offmanifold.load(work / "m.safetensors")
    np.testing.assert_array_equal(table["score"].to_numpy(), detector.score_samples(named.select(*"abcd")))
    np.testing.assert_array_equal(table["score"].to_numpy(), detector.score_samples(named))
    other = run("score", "model.safetensors", "named.csv", "--keep", 'the "name"', "-o", "other.csv", cwd=work)
    assert (
        "400 rows" in other.stdout and pl.read_csv(work / "other.csv").columns[1] == 'the ""name""'
    )  # as polars reads it


def test_a_config_file_and_what_overrides_it(work: Path) -> None:
    (work / "run.toml").write_text(
        'detector = "vae"\ndrop = ["e"]\nthreads = 1\n[parameters]\nsteps = 5\nhidden = [8]\nbeta = 0.5\n'
    )
    run("fit", "normal.csv", "--config", "run.toml", "--set", "beta=2", "-o", "c.safetensors", cwd=work)
    detector = offmanifold.load(work / "c.safetensors")
    assert (detector.key, detector.beta, detector.hidden) == ("vae", 2, (8,))
    assert detector.spec_.columns == tuple("abcd")


def test_the_demo(tmp_path: Path) -> None:
    done = run("demo", "--digit", 0, cwd=tmp_path)
    folder = tmp_path / "offmanifold-demo"
    summary = json.loads((folder / "summary.json").read_text())
    assert set(summary) >= {"auroc", "false_alarm_rate_asked", "false_alarm_rate", "caught", "seconds"}
    assert summary["auroc"]["value"] > 0.9
    assert summary["false_alarm_rate"]["low"] <= 0.05 <= summary["false_alarm_rate"]["high"]
    assert Image.open(folder / "picture.png").size[0] > 800
    assert len(pl.read_csv(folder / "scores.csv")) > 400
    assert "offmanifold fit normal.csv" in done.stdout and summary["verdict"] in ("trust", "care")
    assert (folder / "report.html").read_text().count('class="row"') == 8
    assert offmanifold.load(folder / "model.safetensors").key == summary["detector"]


def test_a_study_runs_resumes_and_shows(tmp_path: Path, real_data: None) -> None:
    environment = os.environ | {"OFFMANIFOLD_DATA": str(offmanifold_data())}
    done = run("study", "run", "fashion-vs-mnist", "--scale", "smoke", cwd=tmp_path, env=environment)
    assert "P1, Table I" in done.stdout and "0.46 (0.05)" in done.stdout
    results = sorted((tmp_path / "results" / "fashion-vs-mnist" / "smoke").iterdir())
    stamps = {path: path.stat().st_mtime_ns for path in results if path.suffix == ".json"}
    assert len(stamps) == 3
    record = json.loads(next(iter(stamps)).read_text())
    assert {"job", "metrics", "digests", "versions", "hardware"} <= set(record)
    again = run("study", "run", "fashion-vs-mnist", "--scale", "smoke", cwd=tmp_path, env=environment)
    assert "3 of 3 jobs were done before" in again.stderr
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}
    assert "Bernoulli" in run("study", "show", "fashion-vs-mnist", "--scale", "smoke", cwd=tmp_path).stdout
    next(iter(stamps)).unlink()
    two = run("study", "run", "fashion-vs-mnist", "--scale", "smoke", "--jobs", 2, cwd=tmp_path, env=environment)
    assert "[3/3]" in two.stderr
    assert json.loads(next(iter(stamps)).read_text())["digests"].keys() == record["digests"].keys()


def offmanifold_data() -> Path:
    from offmanifold.data.benchmarks import data_folder

    return data_folder().resolve()


def test_pictures_scored_in_chunks_keep_their_names(
    tmp_path: Path, digits: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    images = (digits[0] * 255).astype(np.uint8)
    AE(steps=5, hidden=(8,), random_state=0, verbose=False).fit(images[:100]).save(tmp_path / "m.safetensors")
    (tmp_path / "new").mkdir()
    for i, image in enumerate(images[100:105]):
        Image.fromarray(image).save(tmp_path / "new" / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "CHUNK_BYTES", 8 * 64 * 2)
    monkeypatch.setattr("sys.argv", ["offmanifold", "score", "m.safetensors", "new", "-o", "s.parquet"])
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code in (0, None)
    table, detector = pl.read_parquet("s.parquet"), offmanifold.load("m.safetensors")
    assert table["file"].to_list() == [f"{i}.png" for i in range(5)]
    np.testing.assert_allclose(table["score"].to_numpy(), detector.score_samples(images[100:105]), rtol=1e-6)


def test_more_outliers_than_were_asked_for_are_a_word_worth(work: Path) -> None:
    told = run("score", "model.safetensors", "odd.csv", "-o", "many.csv", cwd=work).stderr
    assert "So many are not 0.05 of normal rows" in told and "offmanifold report model.safetensors odd.csv" in told
    assert "So many" not in run("score", "model.safetensors", "normal.csv", "-o", "usual.csv", cwd=work).stderr


def test_a_discovery_rate_that_calibration_rows_cannot_support(work: Path) -> None:
    told = run("score", "model.safetensors", "odd.csv", "--fdr", 0.01, "-o", "few.csv", cwd=work).stderr
    assert "80 calibration rows can call none by --fdr 0.01, however many rows are scored: that takes 99." in told


def test_what_would_be_lost_or_ignored_is_refused(work: Path) -> None:
    before = (work / "odd.csv").read_bytes()
    again = ("score", "model.safetensors", "odd.csv", "--out", "./odd.csv", "--overwrite")
    assert "--out would replace odd.csv, the rows to score" in complaint(*again, cwd=work, status=2)
    assert (work / "odd.csv").read_bytes() == before
    for command, option in itertools.product(("inspect", "diagnose", "report"), ("--array", "--drop")):
        told = complaint(command, "model.safetensors", option, "x", cwd=work, status=2)
        assert f"{option} says how to read data, and there are none" in told


def test_file_names_that_are_no_text(work: Path) -> None:
    name = os.fsdecode(b"new\xff.csv")
    try:
        (work / name).write_bytes((work / "odd.csv").read_bytes())
    except OSError:
        pytest.skip("this file system has none")
    told = complaint("score", "model.safetensors", name, "-o", "of-no-text.csv", cwd=work, status=1)
    assert "is not UTF-8 text. Rename the file." in told


def test_a_study_without_data_says_so(tmp_path: Path) -> None:
    assert "fashion-vs-mnist" in run("study", "list", cwd=tmp_path).stdout
    environment = os.environ | {"OFFMANIFOLD_DATA": "/nowhere"}
    told = complaint("study", "run", "fashion-vs-mnist", "--scale", "smoke", cwd=tmp_path, env=environment, status=1)
    assert "3 of 3 jobs failed" in told and "The data folder /nowhere does not exist. Set OFFMANIFOLD_DATA" in told
    assert "There are no results" in complaint("study", "show", "fashion-vs-mnist", cwd=tmp_path, status=1)
    assert "Did you mean 'fashion-vs-mnist'" in complaint("study", "run", "fashion-vs-mnits", cwd=tmp_path, status=2)
    assert "Did you mean 'smoke'" in complaint(
        "study", "run", "fashion-vs-mnist", "--scale", "smoek", cwd=tmp_path, status=2
    )


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["fit"],
        ["score"],
        ["evaluate"],
        ["inspect"],
        ["diagnose"],
        ["explain"],
        ["report"],
        ["negatives"],
        ["detectors"],
        ["demo"],
        ["study"],
        ["study", "list"],
        ["study", "run"],
        ["study", "show"],
    ],
)
def test_every_help_has_an_example_and_needs_no_torch(command: list[str], tmp_path: Path) -> None:
    text = run(*command, "--help", cwd=tmp_path).stdout
    assert "Usage" in text
    example = " ".join(["offmanifold", *command])
    assert any(line.strip().startswith(example) for line in text.splitlines()), "Usage: stands before the other"
    code = f"import sys; sys.argv = ['offmanifold', *{command!r}, '--help']\nimport atexit\natexit.register(lambda: print('torch' in sys.modules))\nfrom offmanifold.cli.main import main; main()"  # noqa: E501
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("False")


# --- mistakes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["fit", "normal.csv", "--detector", "vea"], 2, "Unknown detector 'vea'. Did you mean 'vae'?"),
        (["fit", "normal.csv", "--set", "batchsize=3"], 2, "no parameter 'batchsize'. Did you mean 'batch_size'?"),
        (["fit", "normal.csv", "--detector", "VAE"], 2, "Did you mean 'vae'"),
        (["fit", "normal.csv", "--set", "latent_dim"], 2, "--set takes KEY=VALUE; got 'latent_dim'"),
        (["fit", "normal.csv", "--set", "batch_size=0"], 2, "batch_size must be an integer of at least 1; got 0"),
        (["fit", "normal.csv", "--set", "false_alarm_rate=1.5"], 2, "false_alarm_rate must be .* got 1.5"),
        (["fit", "normal.csv", "--detector", "ae", "--set", "network=conv28"], 2, "network=.conv28. takes images"),
        (["fit", "normal.csv", "--set", "learning_rate=-1"], 2, "learning_rate must be .* above 0 or 'auto'; got -1"),
        (["fit", "normal.csv", "--detector", "nae", "--set", "visible_chain=(0, 1, 0.1)"], 2, "chain.0. must be"),
        (["fit", "normal.csv", "--detector", "nae", "--set", "visible_chain=0,1,0.1"], 2, "chain.0. must be .* got 0"),
        (["fit", "normal.csv", "--detector", "nae", "--set", "watch=permuted,blotched"], 2, "watch='blotched' is unkn"),
        (["fit", "normal.csv", "--set", "device=warp"], 1, "device='warp' cannot be used here"),
        (["fit", "normal.csv", "--config", "none.toml"], 2, "none.toml does not exist"),
        (["fit", "normal.csv", "--config", "bad.toml"], 2, "bad.toml is not valid TOML"),
        (["fit", "normal.csv", "--config", "odd.toml"], 2, "unknown key 'detectr'. Did you mean 'detector'?"),
        (["fit", "nothing.csv"], 1, "nothing.csv does not exist"),
        (["fit", "twice.csv"], 1, "two columns are called 'a'. Rename one"),
        (["fit", "normal.csv", "--columns", "none.json"], 2, "none.json does not exist"),
        (["fit", "normal.csv", "--columns", "bad.toml"], 2, "bad.toml is not valid JSON"),
        (["fit", "normal.csv", "--columns", "list.json"], 2, "list.json must hold names of columns and their kinds"),
        (["fit", "normal.csv", "--columns", "kinds.json"], 2, r"columns\['a'\]='nominal' is unknown"),
        (["fit", "ragged.csv"], 1, "ragged.csv has a row with more cells than its first line has names"),
        (["fit", "endless.csv"], 1, r"infinity \(inf\) in column 'b'"),
        (["fit", "header.csv"], 1, "header.csv holds no rows"),
        (["fit", "blank.csv"], 1, "Every cell of every row to learn from is missing"),
        (["score", "model.safetensors", "normal.csv", "--keep", "aa"], 1, "no column 'aa' to keep. Did you mean 'a'"),
        (["score", "model.safetensors", "scored.csv", "--keep", "score"], 2, "the scores have a column of that name"),
        (["score", "model.safetensors", "rows.npy", "--keep", "a"], 2, "rows.npy has none"),
        (["explain", "model.safetensors", "rows.npy", "--keep", "a"], 2, "rows.npy has none"),
        (["score", "model.safetensors", "nested.parquet", "--keep", "tags"], 1, "--keep tags: nested.parquet holds li"),
        (["score", "model.safetensors", "nested.parquet", "--keep", "took"], 1, "--keep took: nested.parquet holds .*"),
        (["fit", "normal.csv", "--labels", "specis"], 1, "normal.csv has no column 'specis'[.] Known: a"),
        (["fit", "gone.csv", "--labels", "a"], 1, "gone.csv does not exist"),
        (["fit", "short-years.csv"], 1, "dates such as '01/02/15' in column 'at' have a year of two digits"),
        (["evaluate", "model.safetensors", "normal.csv", "--outliers", "two.npz"], 1, "one with --outliers-array"),
        (["negatives", "model.safetensors", "two.npz", "--normal", "normal.csv"], 1, "one with --negatives-array"),
        (["fit", "normal.csv", "--negatives", "two.npz"], 1, "choose one with --negatives-array"),
        (["score", "model.safetensors", "more.csv"], 1, "not seen in training: 'f'. .* with --drop NAME"),
        (["fit", "one.csv"], 1, "n_samples = 1: MultiscaleDenoiser needs at least 4 rows"),
        (["fit", "normal.csv", "-o", "model.safetensors"], 2, "model.safetensors exists. Give --overwrite"),
        (["fit", "normal.csv", "-o", "model.pkl"], 2, "--out must end in .safetensors"),
        (["fit", "normal.csv", "-o", "no/where.safetensors"], 2, "folder no of --out does not exist"),
        (["fit", "empty"], 1, "empty holds no pictures"),
        (["score", "normal.csv", "odd.csv"], 1, "normal.csv is not a whole safetensors file"),
        (["score", "gone.safetensors", "odd.csv"], 1, "gone.safetensors does not exist"),
        (["score", "model.safetensors", "text.csv"], 1, "The columns differ .* missing: 'b', 'c', 'd', 'e'"),
        (["score", "model.safetensors", "odd.csv", "--fdr", "2"], 2, "--fdr must lie between 0 and 1"),
        (["score", "model.safetensors", "odd.csv", "-o", "x.txt"], 2, "--out must end in .csv or .parquet"),
        (["evaluate", "model.safetensors", "odd.csv"], 2, "either --outliers OTHER or --labels COLUMN"),
        (["evaluate", "model.safetensors", "both.parquet", "--labels", "bda"], 1, "'bda'. Did you mean 'bad'"),
        (["evaluate", "model.safetensors", "both.parquet", "--labels", "a"], 1, "Labels must be 0 and 1"),
        (["fti"], 2, "fit"),
        (["fit"], 2, "Missing argument"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(
    work: Path, arguments: list[str], status: int, message: str, monkeypatch: Any, capfd: Any
) -> None:
    """In this process, which has imported PyTorch already: there are many of them."""
    (work / "bad.toml").write_text("detector = \n")
    (work / "odd.toml").write_text("detectr = 'vae'\n")
    (work / "twice.csv").write_text("a,a\n1,2\n3,4\n")
    (work / "list.json").write_text('["a"]')
    (work / "kinds.json").write_text('{"a": "nominal"}')
    (work / "text.csv").write_text("a,name\n1,x\n2,y\n")
    (work / "ragged.csv").write_text("a,b\n1,2\n3,4,5\n")
    (work / "endless.csv").write_text("a,b\n1,2\n3,inf\n4,5\n5,6\n6,7\n")
    (work / "one.csv").write_text("a,b\n1,2\n")
    (work / "header.csv").write_text("a,b\n")
    (work / "blank.csv").write_text("a,b\n" + ",\n" * 20)
    (work / "more.csv").write_text("a,b,c,d,e,f\n1,2,3,4,5,6\n")
    (work / "scored.csv").write_text("a,b,c,d,e,score\n1,2,3,4,5,6\n")
    np.save(work / "rows.npy", np.zeros((2, 5)))
    (work / "empty").mkdir(exist_ok=True)
    (work / "short-years.csv").write_text("at,x\n01/02/15,1\n02/02/15,2\n")
    np.savez(work / "two.npz", one=np.zeros((2, 5)), other=np.zeros((2, 5)))
    beside = {"tags": [["x"], ["y"]], "took": [datetime.timedelta(1)] * 2}
    pl.DataFrame({name: [1.0, 2.0] for name in "abcde"} | beside).write_parquet(work / "nested.parquet")
    new = {"fit": "new.safetensors", "score": "new.csv"}.get(arguments[0])
    if new and "-o" not in arguments and len(arguments) > 1:
        arguments = [*arguments, "-o", new]
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "argv", ["offmanifold", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capfd.readouterr()
    assert stopped.value.code == status, shown.err
    found = " ".join(shown.err.replace("│", " ").split())
    assert re.search(message, found), found
    assert "Traceback" not in found
    assert not any((work / name).exists() for name in ("new.safetensors", "new.csv"))


def test_a_run_goes_on_with_its_own_settings_alone(work: Path) -> None:
    def fit(*more: object) -> list[str]:
        own = ["--set", "hidden=[32]", "--checkpoint-every", "0", "-o", "cut.safetensors"]
        return ["fit", "normal.csv", "--detector", "ae", *map(str, [*own, *more])]

    # Without a seed, and --resume is in the command from the first run on.
    child = subprocess.Popen([*COMMAND, *fit("--resume", "--set", "steps=400")], cwd=work, stderr=subprocess.DEVNULL)
    while not (work / "cut.checkpoint").exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.kill()
    child.wait()
    told = complaint(*fit("--resume", "--set", "steps=400", "--set", "batch_size=64"), cwd=work, status=1)
    assert "belongs to another run: batch_size was 128 and is 64. Resume with" in told
    run(*fit("--resume", "--set", "steps=400"), cwd=work)
    seed = storage.read(work / "cut.safetensors")[0]["parameters"]["random_state"]
    again = fit("--overwrite", "--set", "steps=400", "--set", f"random_state={seed}")
    _, resumed = storage.read(work / "cut.safetensors")
    run(*again, cwd=work)
    assert all(torch.equal(resumed[name], tensor) for name, tensor in storage.read(work / "cut.safetensors")[1].items())


def test_debug_shows_the_traceback(work: Path) -> None:
    done = run("fit", "nothing.csv", "-o", "new.safetensors", "--debug", cwd=work, status=1)
    assert "Traceback" in done.stderr
    assert "Traceback" in run("fit", "normal.csv", "--set", "steps=0", "--debug", cwd=work, status=2).stderr


def test_a_folder_that_cannot_be_written(work: Path) -> None:
    folder = work / "readonly"
    folder.mkdir()
    folder.chmod(0o500)
    # The superuser may write anywhere but to what the kernel itself keeps.
    target = folder if os.geteuid() else Path("/proc")
    assert complaint("fit", work / "normal.csv", *QUICK, "-o", target / "m.safetensors", cwd=work, status=1)
    assert complaint("score", work / "model.safetensors", work / "odd.csv", "-o", target / "s.csv", cwd=work, status=1)


def test_a_full_disk_leaves_the_earlier_output_whole(work: Path, tmp_path: Path) -> None:
    run("score", work / "model.safetensors", work / "odd.csv", "-o", "scores.csv", cwd=tmp_path)
    before = (tmp_path / "scores.csv").read_bytes()
    (tmp_path / "model.safetensors").write_bytes((work / "model.safetensors").read_bytes())
    model = (tmp_path / "model.safetensors").read_bytes()

    def small_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))

    score = ["score", work / "model.safetensors", work / "odd.csv", "-o", "scores.csv", "--overwrite"]
    done = run(*score, cwd=tmp_path, status=1, preexec_fn=small_files)
    assert "Error" in done.stderr and "Traceback" not in done.stderr
    fit = ["fit", work / "normal.csv", *QUICK, "-o", "model.safetensors", "--overwrite"]
    run(*fit, cwd=tmp_path, status=1, preexec_fn=small_files)
    assert (tmp_path / "scores.csv").read_bytes() == before
    assert (tmp_path / "model.safetensors").read_bytes() == model
    assert {path.name for path in tmp_path.iterdir()} == {"scores.csv", "model.safetensors"}


# --- interruption --------------------------------------------------------------------------------------


def fitting(*more: str, out: str) -> list[str]:
    return [
        *COMMAND, "fit", "normal.csv", "-o", out, "--checkpoint-every", "0", "--threads", "1", *more,
        *(part for key in ("steps=1500", "hidden=[32]", "random_state=0") for part in ("--set", key)),
    ]  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_at_random_moments_and_resumed_it_is_the_same_model(work: Path, how: signal.Signals) -> None:
    rng = random.Random(int(how))
    subprocess.run(fitting("--overwrite", out="straight.safetensors"), cwd=work, check=True, capture_output=True)
    out, checkpoint = work / f"cut{int(how)}.safetensors", work / f"cut{int(how)}.checkpoint"
    cuts = 0
    for _ in range(40):
        child = subprocess.Popen(fitting("--resume", out=out.name), cwd=work, stderr=subprocess.PIPE, text=True)
        began = time.monotonic()
        known = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while child.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == known):
            time.sleep(0.005)
            assert time.monotonic() - began < 120
        if cuts < 4:
            time.sleep(rng.uniform(0, 0.6))
            child.send_signal(how)
        _, errors = child.communicate()
        if child.returncode == 0:
            break
        cuts += 1
        if how == signal.SIGINT:
            assert child.returncode == 130
            assert "Interrupted" in errors
        if "the run is saved in" in errors:
            refused = complaint("fit", "normal.csv", "-o", out.name, cwd=work, status=2)
            assert "Go on with --resume, or discard it with --overwrite" in refused
    assert cuts >= 2, "the run was too short to be cut"
    one, two = storage.read(work / "straight.safetensors")[1], storage.read(out)[1]
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name
    assert not checkpoint.exists()
