"""Every study runs at smoke scale, resumes, and writes its table and figure from its files alone."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offmanifold.data.benchmarks import DataMissing
from offmanifold.detectors import presets
from offmanifold.measures import auroc
from offmanifold.studies import STUDIES, density_2d, mnist_holdout, mnist_ood
from offmanifold.studies.core import folder_of, run_study, shown, summarise
from offmanifold.training.loop import TrainingDiverged


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_smoke(name: str, tmp_path: Path) -> None:
    study = STUDIES[name]
    try:
        records = run_study(study, "smoke", results=tmp_path)
    except DataMissing as error:
        pytest.skip(str(error))
    jobs = study.jobs("smoke", 0)
    assert sorted(record["job"]["name"] for record in records) == sorted(job["name"] for job in jobs)
    with contextlib.suppress(DataMissing):  # a study may name its jobs after files
        for scale, seeds in study.seeds.items():
            names = [job["name"] for seed in seeds for job in study.jobs(scale, seed)]
            assert len(set(names)) == len(names)
    folder = folder_of(study, "smoke", tmp_path)
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    table = (folder / "table.md").read_text()
    assert table.count("|") > 10
    # Again: nothing is done twice, and the table is made from the files.
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    run_study(study, "smoke", results=tmp_path)
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    (folder / "table.md").unlink()
    summarise(study, "smoke", results=tmp_path)
    assert (folder / "table.md").read_text() == table


def test_a_users_own_images_are_compared_too(tmp_path: Path) -> None:
    study = STUDIES["capacity"]
    np.save(tmp_path / "mine.npy", np.zeros((4, 32, 32, 3), np.uint8))
    np.save(tmp_path / "small.npy", np.zeros((4, 28, 28), np.uint8))
    run = functools.partial(run_study, study, "smoke", results=tmp_path, only="alpha0.25-*")
    try:
        (record,) = run(against={"Mine": str(tmp_path / "mine.npy")})
    except DataMissing as error:
        pytest.skip(str(error))
    assert record["metrics"]["auroc"]["Mine"]["elbo"]["value"] <= 1
    assert "AUROC, Mine" in (folder_of(study, "smoke", tmp_path) / "table.md").read_text()
    # A file of the same name with other images is another; without any the job is done, and its table as it was.
    np.save(tmp_path / "mine.npy", np.full((4, 32, 32, 3), 128, np.uint8))
    (again,) = run(against={"Mine": str(tmp_path / "mine.npy")})
    (plain,) = run()
    assert again["digests"] != record["digests"] and plain == again
    with pytest.raises(RuntimeError, match=r"Small: .*small.npy holds uint8 of shape \(4, 28, 28\); images of 32 × 32"):
        run(against={"Small": str(tmp_path / "small.npy")})
    with pytest.raises(ValueError, match="bimodal compares fixed kinds"):
        run_study(STUDIES["bimodal"], "smoke", results=tmp_path, against={"Mine": "mine.npy"})


def test_results_of_other_settings_are_left_out_of_the_table(tmp_path: Path) -> None:
    study = STUDIES["bimodal"]
    run_study(study, "smoke", results=tmp_path)
    folder, told = folder_of(study, "smoke", tmp_path), list[str]()
    path = sorted(folder.glob("*.json"))[0]
    record = json.loads(path.read_text())
    record["job"]["parameters"]["steps"] += 1
    path.write_text(json.dumps(record))
    left = summarise(study, "smoke", results=tmp_path, report=told.append)
    assert record["job"]["name"] not in [other["job"]["name"] for other in left]
    text, missing = told
    assert missing == "Jobs without a result yet: 1 of 4."
    assert f"other settings by now: {record['job']['name']}. `offmanifold study run bimodal --scale smoke` does" in text
    # A job that the study cannot name here may still be one, where its data are.
    record["job"]["parameters"]["steps"] -= 1
    record["job"]["name"] = "elsewhere"
    path.with_suffix(".npz").rename(folder / "elsewhere.npz")
    path.rename(folder / "elsewhere.json").write_text(json.dumps(record))
    assert len(summarise(study, "smoke", results=tmp_path)) == len(left) + 1


def diverging(job: dict[str, Any]) -> dict[str, Any]:
    """Train nothing; one autoencoder diverges, and for the other there is no memory."""
    if job["detector"] == "ae":
        if job["latent_dim"] == 1:
            raise MemoryError("no memory is left")
        raise TrainingDiverged("autoencoder", 3, 2, [], "the loss is nan", "Try another.")
    return {"auroc": auroc([0.0, 1.0], [0.5]).to_json(), "arrays": {}}


@pytest.mark.parametrize("side_by_side", [1, 2])
def test_a_job_that_fails_is_not_the_end_of_the_others(side_by_side: int, tmp_path: Path) -> None:
    study = dataclasses.replace(STUDIES["bimodal"], run=diverging, figure=lambda records, path: None)
    told: list[str] = []
    match = r"2 of 4 jobs failed, .*: ae-z.-seed0, ae-z.-seed0\. First: MemoryError: no memory is left"
    with pytest.raises(RuntimeError, match=match):
        run_study(study, "smoke", results=tmp_path, jobs=side_by_side, report=told.append)
    table = (folder_of(study, "smoke", tmp_path) / "table.md").read_text()
    assert table.count("| NAE |") == 2 and "| AE |" not in table
    for what in ("MemoryError: no memory", "TrainingDiverged: Training diverged in phase 'autoencoder'"):
        assert sum(what in line for line in told) == 1


def without_data(job: dict[str, Any]) -> dict[str, Any]:
    """Do what can be done without a file."""
    if job["detector"] == "nae":
        raise DataMissing("nae.npz does not exist.")
    return diverging(job | {"detector": "nae"})


def test_what_can_be_done_without_some_data_is_done(tmp_path: Path) -> None:
    study = dataclasses.replace(STUDIES["bimodal"], run=without_data, figure=lambda records, path: None)
    with pytest.raises(DataMissing, match=r"2 of 4 jobs failed, .*: nae-.*First: DataMissing: nae.npz does not exist"):
        run_study(study, "smoke", results=tmp_path)
    assert (folder_of(study, "smoke", tmp_path) / "table.md").read_text().count("| AE |") == 2


def test_jobs_are_done_again_where_a_default_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    run = functools.partial(run_study, STUDIES["bimodal"], "smoke", results=tmp_path, report=told.append)
    before = {record["job"]["name"]: record["finished"] for record in run()}
    # NAE has it from its preset; AE not at all.
    monkeypatch.setitem(presets.PRESETS["tables"], "average", 0.5)
    summarise(STUDIES["bimodal"], "smoke", results=tmp_path, report=told.append)
    assert "other settings by now: nae-z1-seed0, nae-z2-seed0." in told[-2]
    told.clear()
    assert len(run()) == len(before)
    assert told[0] == "2 of 4 jobs were done before." and [text[6:9] for text in told[1:]] == ["nae"] * 4
    for name in ("doctor", "samples", "capacity", "composition", "negatives-grey", "pixel-explanations"):
        assert all(STUDIES[name].detectors(job) for job in STUDIES[name].jobs("smoke", 0))


def test_damaged_files_are_done_again_and_those_of_others_left_alone(tmp_path: Path) -> None:
    study, told = STUDIES["bimodal"], list[str]()
    run_study(study, "smoke", results=tmp_path)
    folder = folder_of(study, "smoke", tmp_path)
    cut, torn, gone = (folder / f"{name}-seed0" for name in ("ae-z1", "ae-z2", "nae-z1"))
    cut.with_suffix(".json").write_text(cut.with_suffix(".json").read_text()[:200])
    torn.with_suffix(".npz").write_bytes(torn.with_suffix(".npz").read_bytes()[:200])
    gone.with_suffix(".npz").unlink()
    (folder / "notes.json").write_text("{}")
    assert len(summarise(study, "smoke", results=tmp_path, report=told.append)) == 1
    assert "ae-z1-seed0.json, ae-z2-seed0.json, nae-z1-seed0.json, notes.json in" in told[0]
    told.clear()
    assert len(run_study(study, "smoke", results=tmp_path, report=told.append)) == 4
    assert told[0] == "1 of 4 jobs were done before." and (folder / "notes.json").read_text() == "{}"


def test_arrays_that_are_broken_or_anothers_are_damaged(tmp_path: Path) -> None:
    study, told = STUDIES["bimodal"], list[str]()
    run_study(study, "smoke", results=tmp_path)
    folder = folder_of(study, "smoke", tmp_path)
    broken, exchanged, empty = (folder / f"{name}-seed0" for name in ("ae-z1", "ae-z2", "nae-z1"))
    content = bytearray(broken.with_suffix(".npz").read_bytes())
    content[60:90] = bytes(30)  # the archive's table, at its end, is whole
    broken.with_suffix(".npz").write_bytes(content)
    exchanged.with_suffix(".npz").write_bytes((folder / "nae-z2-seed0.npz").read_bytes())
    record = json.loads(empty.with_suffix(".json").read_text())
    empty.with_suffix(".json").write_text(json.dumps(record | {"metrics": {}}))
    assert len(summarise(study, "smoke", results=tmp_path, report=told.append)) == 1
    assert "ae-z1-seed0.json, ae-z2-seed0.json, nae-z1-seed0.json in" in told[0]
    assert len(run_study(study, "smoke", results=tmp_path, report=told.append)) == 4


def test_records_of_jobs_there_are_no_more_are_left_out(tmp_path: Path) -> None:
    study, told = STUDIES["bimodal"], list[str]()
    run_study(study, "smoke", results=tmp_path)
    folder = folder_of(study, "smoke", tmp_path)
    record = json.loads((folder / "ae-z1-seed0.json").read_text()) | {"digests": {}}
    others = {
        "with-other-defaults": {"defaults": "old"},
        "of-no-detector": {"job": record["job"] | {"detector": "gone"}},
        "with-no-parameter": {"job": record["job"] | {"parameters": {"gone": 1}}},
    }
    for name, own in others.items():
        made = record | own
        (folder / f"{name}.json").write_text(json.dumps(made | {"job": made["job"] | {"name": name}}))
    assert len(summarise(study, "smoke", results=tmp_path, report=told.append)) == 4
    assert f"other settings by now: {', '.join(sorted(others))}. " in told[0]


def test_means_and_intervals_as_tables_show_them() -> None:
    assert shown([]) == "–" and shown([0.25]) == "0.250"
    # Student's 97.5 % quantile with two degrees of freedom is 4.303.
    assert shown([1.0, 2.0, 3.0]) == f"2.000 [{2 - 4.303 / 3**0.5:.3f}, {2 + 4.303 / 3**0.5:.3f}]"
    assert (
        shown([0.9, 0.99, 0.999], share=True).endswith(", 1.000]")
        and shown([0, 0.1], share=True)[:13] == "0.050 [0.000,"
    )
    assert shown([-0.05, 0.1, 0.23], share=True, least=-1) == "0.093 [-0.255, 0.441]"
    assert shown([np.nan, 0.5], share=True) == "nan [nan, nan]"
    assert shown([0.0123]) == "0.0123" and shown([12.34]) == "12.3" and shown([123.4]) == "123"


@pytest.mark.parametrize(
    ("study", "watch"),
    [("mnist-ood", ["patches", "inverted"]), ("cifar-ood", ["erased", "mixed", "patches", "inverted", "blurred"])],
)
def test_nothing_that_is_reported_watched(study: str, watch: list[str]) -> None:
    """Chimeras, which the first study reports, are halves of two images, as mixed ones are."""
    jobs = {job["row"]: job["parameters"] for job in STUDIES[study].jobs("laptop", 0)}
    assert [row for row, parameters in jobs.items() if "watch" in parameters] == ["IGEBM", "NAE-OMI"]
    assert jobs["IGEBM"]["watch"] == jobs["NAE-OMI"]["watch"] == watch


def test_a_figure_of_rows_that_are_not_complete_yet(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mnist_holdout.figure([], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_densities_are_compared_in_nats() -> None:
    points, area = density_2d.grid()
    gaussian = -0.5 * (points**2).sum(1) / 0.6**2  # log p up to a constant
    same = density_2d.compare(gaussian + 3.0, gaussian, area)
    assert same["kl"] == pytest.approx(0, abs=1e-12) and same["tv"] == pytest.approx(0, abs=1e-12)
    assert same["nll"] == pytest.approx(1 + np.log(2 * np.pi * 0.6**2), abs=1e-6)  # its entropy
    wider = density_2d.compare(-0.5 * (points**2).sum(1) / 0.9**2, gaussian, area)
    # KL of two Gaussians: ln(b²/a²) + a²/b² − 1 in two dimensions.
    assert wider["kl"] == pytest.approx(np.log(0.9**2 / 0.6**2) + 0.6**2 / 0.9**2 - 1, abs=1e-4)
    # Of E = |x|² and x ~ N(0, s² I) the likeliest T is 2s².
    errors = (np.random.default_rng(0).normal(0, 0.6, (20_000, 2)) ** 2).sum(1)
    found = density_2d.temperature_of(errors, (points**2).sum(1), area)
    assert found == pytest.approx(2 * 0.6**2, rel=0.06)  # candidates are 6 % apart


def test_chimeras_are_halves_of_two_classes() -> None:
    images, labels = np.full((6, 28, 28), 9, np.uint8), np.array([0, 1, 2, 0, 1, 2])
    images += 10 * labels[:, None, None].astype(np.uint8)
    joined = mnist_ood.chimeras(images, labels, 6)
    assert (joined[:, 11:17] == 0).all()
    upper, lower = joined[:, :11], joined[:, 17:]
    assert (upper == images[:, :11]).all()
    assert all(len(np.unique(part)) == 1 for part in lower)
    assert (lower[:, 0, 0] != upper[:, 0, 0]).all()
