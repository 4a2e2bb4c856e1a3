"""Files and folders → what :class:`~offmanifold.data.inputs.Rows` takes, whole or in chunks."""

from __future__ import annotations

import math
import os
import warnings
import zipfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import narwhals as nw
import numpy as np
import numpy.typing as npt
import polars as pl

from offmanifold import memory
from offmanifold.data import pictures
from offmanifold.data.columns import WIDE
from offmanifold.data.scans import check_dates, check_ends, polars_errors, scan, without_blanks
from offmanifold.parameters import did_you_mean

PICTURES = (".png", ".jpg", ".jpeg")
SUFFIXES = (".csv", ".parquet", ".npy", ".npz")


class Source:
    """A data file or folder, opened but not read.

    Attributes
    ----------
    path : Path
    files : list of str or None
        File names, one a row, where the rows are pictures in a folder.
    columns : tuple of str
        What a table's columns are called.
    dropped : tuple of str
        Those that are left out.
    unwritable : tuple of str
        Those that a CSV file cannot hold: lists, structures, bytes, durations.
    images : bool
        Whether the rows are images.
    colour : bool
        Whether they are images in colour.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files: list[str] | None = None
        self.columns: tuple[str, ...] = ()
        self.dropped: tuple[str, ...] = ()
        self.unwritable: tuple[str, ...] = ()
        self.images = self.colour = False

    def chunks(self, rows: int) -> Iterator[Any]:
        """Yield arrays or frames of at most ``rows`` rows, in order."""
        raise NotImplementedError

    def load(self) -> Any:
        """Return everything as one array or frame."""
        raise NotImplementedError


def open_source(
    path: str | os.PathLike[str],
    *,
    array: str | None = None,
    drop: Sequence[str] = (),
    columns: Sequence[str] | None = None,
    text: Sequence[str] = (),
    colour: bool = False,
    lenient: Collection[str] = (),
    option: str = "--array",
) -> Source:
    """Open a ``.csv``, ``.parquet``, ``.npy`` or ``.npz`` file, or a folder of PNG and JPEG pictures.

    Parameters
    ----------
    path : path
    array : str, optional
        Which array of an ``.npz`` file; not needed if there is one only.
    drop : sequence of str
        Columns of a table to leave out.
    columns : sequence of str, optional
        Columns known to be numbers (those of training): a CSV file's text is then parsed as such, and what stands for
        a missing one, such as NA, is none.
    text : sequence of str
        Columns of a CSV file to be left as text (categories that look like numbers).
    colour : bool
        Read pictures in colour even where all of them are grey.
    lenient : collection of {"array", "drop", "missing"}
        What was meant for another file, and counts where it fits this one. "missing": of what to drop, columns that a
        table does not have.
    option : str
        What to choose an array by, for the error messages.

    Warns
    -----
    UserWarning
        Some pictures are in colour and others grey.

    Raises
    ------
    ValueError
        Saying what is wrong with the file: missing, of another type, damaged, without pictures, …
    """
    path = _named(Path(path))
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    if "array" not in lenient and array is not None and path.suffix.lower() != ".npz":
        raise ValueError(f"{option} names an array of an .npz file; {path} is not one.")
    if not path.is_dir() and not path.is_file():
        raise ValueError(f"{path} is no ordinary file, and files are read more than once. Save it as one first.")
    if path.is_dir():
        source: Source = _Folder(path, colour)
    elif path.suffix.lower() in (".csv", ".parquet"):
        return _Table(path, drop, columns, text, not {"drop", "missing"} & set(lenient))
    elif path.suffix.lower() in (".npy", ".npz"):
        source = _Array(path, array, "array" not in lenient, option)
    else:
        raise ValueError(
            f"{path} is of an unknown type. Known: {', '.join(SUFFIXES)}, and folders of "
            f"{', '.join(PICTURES)} pictures."
        )
    if drop and "drop" not in lenient:
        raise ValueError(f"--drop names columns of a .csv or .parquet file; {path} has none.")
    return source


def _named(path: Path) -> Path:
    """Refuse a file whose name is no text: neither tables nor pictures of it could be written."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"The name {str(path)!r} is not UTF-8 text. Rename the file.") from error
    return path


def read_column(path: str | os.PathLike[str], name: str) -> npt.NDArray[Any]:
    """Read one column of a table, or one array of an ``.npz`` file, e.g. the labels."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    if path.suffix.lower() == ".npz":
        return np.asarray(_Array(path, name).load())
    if path.suffix.lower() not in (".csv", ".parquet"):
        raise ValueError(f"{path} has no named columns; --labels needs a .csv, .parquet or .npz file.")
    with polars_errors(path):
        frame = scan(path)
        names = frame.collect_schema().names()
        if name not in names:
            raise ValueError(f"{path} has no column {name!r}.{did_you_mean(name, names)}")
        column = nw.from_native(_known(frame.select(name).collect().to_series()), series_only=True)
        return (column.cast(nw.Float64()) if column.dtype in WIDE else column).to_numpy()


def _known(column: pl.Series) -> pl.Series:
    """Return text without what stands for a missing cell, and as numbers where all others are."""
    if column.dtype != pl.String():
        return column
    text = column.to_frame().select(without_blanks(pl.col(column.name))).to_series()
    for dtype in (pl.Int64(), pl.Float64()):
        numbers = text.cast(dtype, strict=False)
        if numbers.null_count() == text.null_count() < len(text):
            return numbers
    return text


def _is_unwritable(dtype: pl.DataType) -> bool:
    return dtype.is_nested() or dtype in (pl.Binary, pl.Duration, pl.Object)


class _Table(Source):
    def __init__(
        self, path: Path, drop: Sequence[str], columns: Sequence[str] | None, text: Sequence[str], strict: bool
    ) -> None:
        super().__init__(path)
        with polars_errors(path):
            frame = scan(path, columns, text)
            schema = frame.collect_schema()
            names = schema.names()
            dates = [name for name, dtype in schema.items() if dtype.is_temporal() and name not in drop]
            if path.suffix.lower() == ".csv":
                check_ends(path, names)
                if dates:
                    check_dates(path, dates)
        for name in drop:
            if strict and name not in names:
                raise ValueError(f"{path} has no column {name!r} to drop.{did_you_mean(name, names)}")
        self._frame = frame.drop(list(drop), strict=False)
        self.columns = tuple(name for name in names if name not in drop)
        self.dropped = tuple(name for name in names if name in drop)
        self.unwritable = tuple(name for name in self.columns if _is_unwritable(schema[name]))

    def chunks(self, rows: int) -> Iterator[pl.DataFrame]:
        with polars_errors(self.path):
            for batch in self._frame.collect_batches(chunk_size=rows, lazy=True):
                yield from batch.iter_slices(rows)

    def load(self) -> pl.DataFrame:
        with polars_errors(self.path):
            return self._frame.collect()


class _Array(Source):
    def __init__(self, path: Path, name: str | None, strict: bool = True, option: str = "--array") -> None:
        super().__init__(path)
        try:
            opened = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError, SyntaxError, TypeError, KeyError) as error:
            raise ValueError(f"{path} cannot be read as a NumPy file: {error}") from error
        except Exception as error:  # zipfile and zlib raise their own kinds for damaged archives
            raise ValueError(f"{path} is damaged: {error}") from error
        if isinstance(opened, np.ndarray):
            self._take(opened)
            return
        with opened:
            names = list(opened.keys())
            if name is None or (not strict and name not in names and len(names) == 1):
                if not names:
                    raise ValueError(f"{path} holds no array.")
                if len(names) != 1:
                    raise ValueError(f"{path} holds several arrays ({', '.join(names)}): choose one with {option}.")
                name = names[0]
            if name not in names:
                raise ValueError(f"{path} has no array {name!r}.{did_you_mean(name, names)}")
            try:
                assert opened.zip is not None  # it is open
                needed = _unpacked(opened.zip, name)
            except Exception as error:
                raise ValueError(f"{path}: the array {name!r} cannot be read: {error}") from error
            there = memory.installed()
            if needed > there:
                raise ValueError(
                    f"{path}: the array {name!r} takes {needed / 2**30:,.3g} GiB unpacked; this machine has "
                    f"{there / 2**30:,.3g} GiB. Save it as an .npy file, which is read piece by piece."
                )
            try:
                self._take(opened[name])
            except Exception as error:
                raise ValueError(f"{path}: the array {name!r} cannot be read: {error}") from error

    def _take(self, array: npt.NDArray[Any]) -> None:
        if array.ndim == 0:
            raise ValueError(f"{self.path} holds a single value, not rows.")
        if array.dtype.names:
            raise ValueError(
                f"{self.path} holds records ({', '.join(array.dtype.names)}). Save a table as .csv or .parquet."
            )
        self._array = array
        self.images = array.ndim > 2
        self.colour = array.ndim == 4 and 3 in (array.shape[1], array.shape[3])

    def chunks(self, rows: int) -> Iterator[npt.NDArray[Any]]:
        array = self._array
        for start in range(0, len(array), rows):
            if isinstance(array, np.memmap) and array.ndim and array.flags.c_contiguous:
                # Read rather than mapped: pages of a mapping stay in memory after their chunk is done.
                count = min(rows, len(array) - start) * math.prod(array.shape[1:])
                offset = array.offset + start * array.strides[0]
                flat = np.fromfile(self.path, array.dtype, count, offset=offset)
                yield flat.reshape(-1, *array.shape[1:])
            else:
                yield array[start : start + rows]

    def load(self) -> npt.NDArray[Any]:
        return self._array


def _unpacked(archive: zipfile.ZipFile, name: str) -> int:
    """Return how many bytes an array of an ``.npz`` file takes, by its own header."""
    member = name if name in archive.namelist() else f"{name}.npy"
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
    return math.prod(shape) * dtype.itemsize


class _Folder(Source):
    """Pictures of one size in one folder, sorted by name; grey if all of them are and colour is not asked for."""

    def __init__(self, path: Path, colour: bool) -> None:
        super().__init__(path)
        paths = sorted(_named(entry) for entry in path.iterdir() if entry.suffix.lower() in PICTURES)
        if not paths:
            raise ValueError(f"{path} holds no pictures ({', '.join(PICTURES)}).")
        sizes: dict[tuple[int, int], Path] = {}
        coloured = []
        for picture in paths:
            with pictures.opened(picture) as image:
                sizes.setdefault(pictures.size(image), picture)
                if not pictures.is_grey(image):
                    coloured.append(picture)
        if len(sizes) > 1:
            (first, one), (second, other) = list(sizes.items())[:2]
            raise ValueError(
                f"The pictures in {path} differ in size: {one.name} has {first[0]}×{first[1]} pixels, "
                f"{other.name} has {second[0]}×{second[1]}. Bring them to one size first."
            )
        self._paths = paths
        if 0 < len(coloured) < len(paths) and not colour:
            warnings.warn(
                f"{path}: {len(coloured):,} of {len(paths):,} pictures are in colour, such as {coloured[0].name}; "
                "the grey ones are read as colour too. Where all should be grey, convert those.",
                UserWarning,
                stacklevel=3,
            )
        self._mode = "RGB" if coloured or colour else "L"
        self.files = [picture.name for picture in paths]
        self.images, self.colour = True, self._mode == "RGB"

    def chunks(self, rows: int) -> Iterator[npt.NDArray[np.uint8]]:
        for start in range(0, len(self._paths), rows):
            yield self._read(self._paths[start : start + rows])

    def load(self) -> npt.NDArray[np.uint8]:
        return self._read(self._paths)

    def _read(self, paths: list[Path]) -> npt.NDArray[np.uint8]:
        return np.stack([pictures.pixels(path, self._mode) for path in paths])
