"""What the tests share: small data of known structure, and detectors that train in a moment."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from offmanifold.data.benchmarks import DataMissing, data_folder
from offmanifold.detectors import AE, DETECTORS, OutlierDetector

QUICK: dict[str, Any] = {"steps": 60, "hidden": (32,), "verbose": False, "random_state": 0}
# For those detectors that have them.
QUICK_CHAINS: dict[str, Any] = {
    "pretraining_steps": 60, "latent_chain": (2, 0.005, 0.1), "visible_chain": (3, 0.05, 0.05), "replay_size": 500,
}  # fmt: skip


def quick(detector_class: type[OutlierDetector]) -> dict[str, Any]:
    """Hyper-parameters with which a detector trains in a moment."""
    known = detector_class().get_params()
    return QUICK | {name: value for name, value in QUICK_CHAINS.items() if name in known}


def made(cls: type[OutlierDetector], **own: Any) -> Any:
    """Return a detector that trains in a moment, but for its ``own`` hyper-parameters."""
    return cls(**(quick(cls) | own))


@pytest.fixture(autouse=True, scope="session")
def _ordinary_process() -> None:
    """Two threads at most, one beside other workers; Ctrl-C as at a terminal even if the suite is a background job."""
    alone = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) == 1
    if not alone:
        os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that tests start
    torch.set_num_threads(min(2, torch.get_num_threads()) if alone else 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=sorted(DETECTORS))
def detector_class(request: pytest.FixtureRequest) -> type[OutlierDetector]:
    """Every entry of the table of detectors."""
    return DETECTORS[request.param]


@pytest.fixture(scope="session")
def plane() -> tuple[np.ndarray, np.ndarray]:
    """Rows near a plane in five dimensions, and rows far from it."""
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(2, 5))
    normal = rng.normal(size=(400, 2)) @ basis + 0.05 * rng.normal(size=(400, 5))
    outliers = rng.normal(size=(100, 5)) * 6
    return normal, outliers


@pytest.fixture(scope="session")
def world() -> Callable[[int, int], np.ndarray]:
    """Rows on a curved surface of two dimensions in six, as many and as random as one likes."""
    basis = np.random.default_rng(0).normal(size=(2, 4))

    def draw(n: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        z = rng.normal(size=(n, 2))
        return np.concatenate([z, np.tanh(z @ basis)], 1) + 0.05 * rng.normal(size=(n, 6))

    return draw


@pytest.fixture(scope="session")
def honest(world: Callable[[int, int], np.ndarray]) -> OutlierDetector:
    """An autoencoder that has learned it."""
    return trained(AE).fit(world(1000, 1))


def trained(cls: type[OutlierDetector], **own: Any) -> Any:
    """Return a detector that learns a world, with its ``own`` hyper-parameters."""
    return cls(**{"random_state": 0, "verbose": False, "steps": 300, **own})


@pytest.fixture(scope="session")
def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's 8×8 digits in [0, 1] and their labels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return loaded.images / 16.0, loaded.target


@pytest.fixture
def real_data() -> None:
    """Skip where the folder of real data is not at hand."""
    try:
        data_folder()
    except DataMissing as error:
        pytest.skip(str(error))
