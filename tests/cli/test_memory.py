"""Scoring a file takes memory for a piece of it, not for the whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import QUICK

from offmanifold import AE

PEAK = (
    "import resource, subprocess, sys; "
    "subprocess.run([sys.executable, '-m', 'offmanifold.cli', 'score', 'm.safetensors', sys.argv[1], "
    "'-o', 's.parquet', '--overwrite', '--threads', '1'], check=True, stdout=subprocess.DEVNULL); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
)


def peak(folder: Path, name: str) -> float:
    """MiB of a child of a fresh process, so that peaks do not mix."""
    done = subprocess.run([sys.executable, "-c", PEAK, name], cwd=folder, capture_output=True, text=True, check=True)
    return float(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted differently elsewhere")
def test_an_array_is_scored_in_pieces(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(700_000, 100)).astype(np.float32)
    np.save(tmp_path / "small.npy", rows[:100])
    np.save(tmp_path / "large.npy", rows)
    AE(**QUICK).fit(rows[:100]).save(tmp_path / "m.safetensors")
    size = rows.nbytes / 2**20
    assert size > 250
    assert peak(tmp_path, "large.npy") - peak(tmp_path, "small.npy") < 0.9 * size


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is counted differently elsewhere")
def test_a_table_is_scored_in_pieces(tmp_path: Path) -> None:
    """Few different values: small on the disk, 800 MB when read."""
    some = pl.from_numpy(np.random.default_rng(0).integers(0, 9, (100_000, 50)).astype(np.float32), orient="row")
    some.head(100).write_parquet(tmp_path / "small.parquet")
    pl.concat([some] * 40).write_parquet(tmp_path / "large.parquet", row_group_size=100_000)
    AE(**QUICK).fit(some.head(100)).save(tmp_path / "m.safetensors")
    size = 40 * some.height * some.width * 4 / 2**20
    assert size > 750
    assert peak(tmp_path, "large.parquet") - peak(tmp_path, "small.parquet") < 0.75 * size
