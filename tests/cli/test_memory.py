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
@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_scoring_is_done_in_pieces(tmp_path: Path, suffix: str) -> None:
    rows = np.random.default_rng(0).normal(size=(700_000, 100))
    small, large = rows[:100].astype(np.float32), rows.astype(np.float32)
    if suffix == "npy":
        np.save(tmp_path / "small.npy", small)
        np.save(tmp_path / "large.npy", large)
        AE(**QUICK).fit(small).save(tmp_path / "m.safetensors")
    else:
        frames = [pl.from_numpy(array, orient="row") for array in (small, large)]
        frames[0].write_parquet(tmp_path / "small.parquet")
        frames[1].write_parquet(tmp_path / "large.parquet", row_group_size=50_000)
        AE(**QUICK).fit(frames[0]).save(tmp_path / "m.safetensors")
    size = (tmp_path / f"large.{suffix}").stat().st_size / 2**20
    assert size > 200
    assert peak(tmp_path, f"large.{suffix}") - peak(tmp_path, f"small.{suffix}") < 0.9 * size
