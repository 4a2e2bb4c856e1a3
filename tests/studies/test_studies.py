"""Every study runs at smoke scale, resumes, and writes its table and figure from its files alone."""

from __future__ import annotations

import contextlib
import functools
import json
from pathlib import Path

import numpy as np
import pytest

from offmanifold.data.benchmarks import DataMissing
from offmanifold.studies import STUDIES
from offmanifold.studies.core import folder_of, run_study, summarise


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
        assert len({job["name"] for scale in study.seeds for job in study.jobs(scale, 0)}) >= len(jobs)
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
    with pytest.raises(ValueError, match=r"Small: .*small.npy holds uint8 of shape \(4, 28, 28\); images of 32 × 32"):
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
    (text,) = told
    assert f"other settings by now: {record['job']['name']}. `offmanifold study run bimodal --scale smoke` does" in text
    # A job that the study cannot name here may still be one, where its data are.
    record["job"]["name"] = "elsewhere"
    path.with_suffix(".npz").rename(folder / "elsewhere.npz")
    path.rename(folder / "elsewhere.json").write_text(json.dumps(record))
    assert len(summarise(study, "smoke", results=tmp_path)) == len(left) + 1
