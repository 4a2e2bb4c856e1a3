"""Real data sets for studies and benchmarks, found on disk; the library itself never needs them."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from offmanifold.data.files import open_source

VARIABLE = "OFFMANIFOLD_DATA"


class DataMissing(FileNotFoundError):
    """A data set is not on this machine."""


def data_folder() -> Path:
    """Return the folder of data sets: ``$OFFMANIFOLD_DATA``, or ``../shared/data`` if that is there."""
    folder = Path(os.environ.get(VARIABLE, "../shared/data"))
    if not folder.is_dir():
        raise DataMissing(
            f"The data folder {folder} does not exist. Set {VARIABLE} to a folder of .npz files "
            "(x_train, y_train, x_test, y_test), as docs/data.md describes."
        )
    return folder


Pixels = npt.NDArray[np.uint8]


class Images(NamedTuple):
    """A set of images, uint8 ``(n, H, W)`` or ``(n, H, W, 3)``, with labels ``(n,)``; what is missing is empty."""

    train: Pixels
    test: Pixels
    train_labels: npt.NDArray[Any]
    test_labels: npt.NDArray[Any]


def images(name: str) -> Images:
    """Load ``name.npz`` from the data folder, read-only; a missing part is empty."""
    path = data_folder() / f"{name}.npz"
    if not path.is_file():
        raise DataMissing(f"{path} does not exist; docs/data.md says where {name} comes from.")
    return _images(path.resolve())


# The files are packed tightly: unpacking takes seconds, and a study's jobs ask for the same ones.
@functools.lru_cache(maxsize=4)
def _images(path: Path) -> Images:
    with np.load(path, allow_pickle=False) as arrays:
        held = {key: arrays[key] for key in arrays.files}
    for array in held.values():
        array.flags.writeable = False
    pixels = next((held[key] for key in ("x_test", "x_train") if key in held), None)
    if pixels is None:
        raise ValueError(f"{path} holds neither x_train nor x_test, but {', '.join(held) or 'nothing'}.")
    return Images(*(held.get(key, pixels[:0]) for key in ("x_train", "x_test", "y_train", "y_test")))


def others_at_hand(names: Mapping[str, str], most: int) -> dict[str, Pixels]:
    """Return at most ``most`` test images of each set by its label; those that are not on this machine are left out."""
    found = {}
    for label, name in names.items():
        with contextlib.suppress(DataMissing):
            found[label] = images(name).test[:most]
    return found


def others_named(paths: Mapping[str, str], most: int, like: Pixels) -> dict[str, Pixels]:
    """Read at most ``most`` of a user's images of each kind, files or folders by label; they must be of one size."""
    found = {}
    for label, path in paths.items():
        pixels = np.asarray(next(open_source(path).chunks(most)))
        if pixels.dtype != np.uint8 or pixels.shape[1:] != like.shape[1:]:
            size = " × ".join(map(str, like.shape[1:]))
            raise ValueError(
                f"{label}: {path} holds {pixels.dtype} of shape {pixels.shape}; images of {size} bytes are needed, as "
                "the detector was trained on. Bring them to that size first."
            )
        found[label] = pixels
    return found


class Table(NamedTuple):
    """A table split for outlier detection: normal rows to learn, normal rows and outliers to test."""

    name: str
    train: npt.NDArray[Any]
    normal: npt.NDArray[Any]
    outliers: npt.NDArray[Any]


def table_names() -> list[str]:
    """Return the names of the ADBench tables of ``tables/``, the smallest file first."""
    folder = data_folder() / "tables"
    paths = sorted(folder.glob("*.npz"), key=lambda path: (path.stat().st_size, path.name))
    if not paths:
        raise DataMissing(f"{folder} holds no tables; docs/data.md says where they come from.")
    return [path.stem for path in paths]


def table(name: str, seed: int, *, most_rows: int = 10_000) -> Table:
    """Load one of the ADBench tables of ``tables/`` under the inliers-only protocol.

    The first half of the shuffled normal rows trains; the rest and all outliers test, at most ``most_rows``
    of each.
    """
    path = data_folder() / "tables" / f"{name}.npz"
    if not path.is_file():
        raise DataMissing(f"{path} does not exist; docs/data.md says where the tables come from.")
    with np.load(path, allow_pickle=False) as arrays:
        rows, is_outlier = arrays["X"].astype(np.float64), arrays["y"].astype(bool)
    rng = np.random.default_rng(seed)
    normal, outliers = np.flatnonzero(~is_outlier), np.flatnonzero(is_outlier)
    rng.shuffle(normal)
    rng.shuffle(outliers)
    half = len(normal) // 2
    return Table(
        name,
        rows[normal[:half][:most_rows]],
        rows[normal[half:][:most_rows]],
        rows[outliers[:most_rows]],
    )


def tables(seed: int, *, most_rows: int = 10_000) -> Iterator[Table]:
    """Yield all of them, the smallest file first, as :func:`table` loads each."""
    for name in table_names():
        yield table(name, seed, most_rows=most_rows)
