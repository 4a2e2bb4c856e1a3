"""Anything a user has → rows of one known shape, and the :class:`InputSpec` that later data must match."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeAlias

import narwhals as nw
import numpy as np
import numpy.typing as npt
import scipy.sparse

from offmanifold import parameters
from offmanifold.data.columns import IGNORED, WIDE, Column, Levels, guess, is_missing, with_levels
from offmanifold.data.remarks import far_off, remarks

Float64Array: TypeAlias = npt.NDArray[np.float64]
Float32Array: TypeAlias = npt.NDArray[np.float32]
Layout = Literal["columns", "hw", "hwc", "chw"]

CHANNELS = (1, 3, 4)
# Arithmetic such as x * (1 / 255) may leave [0, 1] by a rounding error; more than that is a mistake.
PIXEL_SLACK = 1e-6


@dataclasses.dataclass(frozen=True)
class InputSpec:
    """What one row looks like.

    Attributes
    ----------
    kind : {"table", "image"}
    shape : tuple of int
        ``(d,)`` for tables, ``(channels, height, width)`` for images, whatever the user's layout was.
    layout : {"columns", "hw", "hwc", "chw"}
        The user's own arrangement, in which samples are returned.
    columns : tuple of str or None
        The names of a frame's columns, in the order of training.
    details : tuple of Column or None
        What they are, where not all are numbers.
    ignored : tuple of str
        Columns that were left out, and that new data may have.
    """

    kind: Literal["table", "image"]
    shape: tuple[int, ...]
    layout: Layout
    columns: tuple[str, ...] | None = None
    details: tuple[Column, ...] | None = None
    ignored: tuple[str, ...] = ()

    @property
    def dimensions(self) -> int:
        """Number of numbers in a row."""
        return math.prod(self.shape)

    @property
    def colour(self) -> bool:
        """Whether rows are images of several channels."""
        return self.kind == "image" and self.shape[0] > 1

    @property
    def names(self) -> tuple[str, ...]:
        """What a table's columns are called: their names, or "column 0", …; nothing for images."""
        if self.kind == "image":
            return ()
        return self.columns or tuple(f"column {i}" for i in range(self.shape[0]))

    def describe(self) -> str:
        """Say in words what a row is."""
        if self.kind == "table":
            return f"a table of {self.shape[0]} column{'s' if self.shape[0] > 1 else ''}" + self._kinds()
        channels, height, width = self.shape
        colours = {1: "grey", 3: "RGB", 4: "RGBA"}[channels]
        return f"{colours} images of {height}×{width} pixels"

    def _kinds(self) -> str:
        counts = collections.Counter(column.kind for column in self.details or ())
        plurals = {"number": "numbers", "category": "categories", "boolean": "booleans", "date": "dates"}
        told = [f"{n} {kind if n == 1 else plurals[kind]}" for kind, n in counts.items()]
        return f" ({', '.join(told)})" if told else ""

    def to_json(self) -> dict[str, Any]:
        """Return a dict that :meth:`from_json` turns back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> InputSpec:
        """Rebuild a spec, checking every field; raise ``ValueError`` for one that cannot be."""
        try:
            shape = tuple(int(size) for size in values["shape"])
            columns, details = values["columns"], values.get("details")  # files of before there were kinds
            spec = cls(
                kind=values["kind"],
                shape=shape,
                layout=values["layout"],
                columns=None if columns is None else tuple(str(name) for name in columns),
                details=None if details is None else tuple(Column.from_json(column) for column in details),
                ignored=tuple(str(name) for name in values.get("ignored", ())),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the input description is damaged ({error!r})") from error
        fits = (
            min(shape, default=0) > 0
            and (spec.kind, len(shape)) in (("table", 1), ("image", 3))
            and (spec.layout in ("hw", "hwc", "chw") if spec.kind == "image" else spec.layout == "columns")
            and (spec.columns is None or (spec.kind == "table" and len(spec.columns) == shape[0]))
            and (spec.details is None or spec.columns == tuple(column.name for column in spec.details))
        )
        if not fits:
            raise ValueError(f"the input description is inconsistent: {values}")
        return spec

    def arrange(self, rows: Float64Array) -> Float64Array:
        """Return canonical rows ``(n, *shape)`` in the user's layout."""
        if self.layout == "hwc":
            return np.ascontiguousarray(np.moveaxis(rows, 1, -1))
        return rows[:, 0] if self.layout == "hw" else rows

    def present(self, rows: Float64Array, frame: nw.DataFrame[Any] | None = None) -> Any:
        """Return canonical rows as a user knows them: an array, or a polars frame where not all columns are numbers.

        ``frame`` is what they were, if that is known.
        """
        if self.details is None:
            return self.arrange(rows)
        import polars as pl

        came = {} if frame is None else {series.name: series for series in frame.iter_columns()}
        return pl.DataFrame([column.write(rows[:, i], came.get(column.name)) for i, column in enumerate(self.details)])


def evenly(n: int, most: int) -> npt.NDArray[np.intp]:
    """Return the places of at most ``most`` of ``n`` rows, evenly spread."""
    return np.linspace(0, n - 1, min(n, most)).astype(np.intp)


class Rows:
    """A user's rows, described at once and converted piece by piece.

    Parameters
    ----------
    X : array-like, torch tensor, or data frame (pandas, polars, pyarrow, …)
        ``(n, d)`` is a table; ``(n, height, width)``, ``(n, channels, height, width)`` and
        ``(n, height, width, channels)`` are images, uint8 or floats in [0, 1].
    expected : InputSpec, optional
        What training saw. A frame's columns are brought into its order by name, images may come in another layout;
        anything else that differs is an error, and so is an array where columns are categories or dates.
    owner : str
        Who asks, for the error messages.
    columns : mapping of str to str, optional
        What columns of a frame are, where their type does not tell: "number", "category", "boolean" or "date"; or
        "ignored".
    """

    def __init__(
        self,
        X: Any,
        expected: InputSpec | None = None,
        owner: str = "the detector",
        columns: Mapping[str, str] | None = None,
    ) -> None:
        if columns is not None and not isinstance(columns, Mapping):
            raise parameters.InvalidParameter(
                "columns must say of columns what they are, such as {'size': 'category'}; got "
                f"{type(columns).__name__}."
            )
        columns = columns and {str(name): kind for name, kind in columns.items()}
        self.asked = columns
        self._levels: list[Levels] = []
        self._plain = False
        self._frame: nw.DataFrame[Any] | None = None
        self._array: npt.NDArray[Any] = np.empty(0)
        frame = _as_frame(X)
        if frame is not None and not all(isinstance(name, str) for name in frame.columns):
            X, frame = _of_numbered(frame, columns or (expected and expected.columns) or ())
        if frame is not None:
            self.spec = _frame_spec(frame, expected, columns)
            self._frame = frame.select(*self.spec.columns) if self.spec.columns else frame
            numeric = all(dtype.is_numeric() and dtype not in WIDE for dtype in self._frame.schema.values())
            self._plain = self.spec.details is None and numeric
            self._rows = len(frame)
        elif columns:
            raise ValueError("columns= says what the columns of a data frame are; X is not one.")
        else:
            array = _as_array(X)
            self.spec = _array_spec(array, expected)
            self._array = array
            self._rows = len(array)
        if self._rows == 0:
            raise ValueError(
                f"Found array with 0 sample(s) (shape={np.shape(self._array) or (0, *self.spec.shape)}) "
                "while a minimum of 1 is required."
            )
        self._layout = self.spec.layout  # images may come in another than in training
        if expected is not None:
            _enforce(self.spec, expected, owner)
            self.spec = expected

    def __len__(self) -> int:
        return self._rows

    @property
    def as_came(self) -> InputSpec:
        """What they are, images in the layout that these came in: in which what is made of them goes back."""
        return dataclasses.replace(self.spec, layout=self._layout)

    def select(self, index: npt.NDArray[np.intp]) -> Any:
        """Return some of the user's rows, as they came."""
        return self._array[index] if self._frame is None else self._frame[index.tolist(), :].to_native()

    def present(self) -> Any:
        """Return all rows as :meth:`InputSpec.present` does, levels that have no name in training beside their own."""
        return self.as_came.present(self.take(slice(None)).astype(np.float64), self._frame)

    def learn(self, training: npt.NDArray[np.intp]) -> None:
        """Learn the levels of categories from rows of training; new rows may come with others."""
        if self.spec.details is None or self._frame is None:
            return
        part = self._frame[training.tolist(), :]
        learned = [with_levels(column, part[column.name]) for column in self.spec.details]
        self.spec = dataclasses.replace(self.spec, details=tuple(column for column, _ in learned))
        self._levels = [levels for _, levels in learned]

    def remarks(self, training: Float64Array | Float32Array) -> list[str]:
        """Return what a user should know about rows of training, as :meth:`take` gives them, and a frame's columns."""
        told = []
        if self.spec.kind == "table" and (empty := int(np.isnan(training).all(1).sum())):
            told.append(
                f"{empty:,} of the {len(training):,} rows of training hold nothing, as blank lines of a CSV file do. "
                "Nothing is learned from them, and such rows make the promised rate another: leave them out."
            )
        return told + (self._of_array(training) if self._frame is None else self._of_frame(training))

    def _of_array(self, training: Float64Array | Float32Array) -> list[str]:
        if len(training) > 1 and all(bool((row == training[0]).all()) for row in training[1:]):
            return ["All rows of training are alike: whatever differs from them at all will be odd."]
        if self.spec.kind == "image":
            told = (
                "The largest value of these uint8 images is 1. They are read as 0 to 255, so that 1 is nearly "
                "black: pass masks as booleans, or multiply them by 255."
            )
            return [told] if self._array.dtype == np.uint8 and training.max() == np.float32(1 / 255) else []
        names = self.spec.columns or range(training.shape[1])
        return [remark for name, cells in zip(names, training.T, strict=True) if (remark := far_off(name, cells))]

    def _of_frame(self, training: Float64Array | Float32Array) -> list[str]:
        columns = self.spec.details or tuple(Column(name) for name in self.spec.columns or ())
        return remarks(columns, training.astype(np.float64, copy=False), self._levels or [Levels()] * len(columns))

    def take(self, index: slice | npt.NDArray[np.intp]) -> Float64Array | Float32Array:
        """Return rows in canonical form: float64 ``(m, d)``, NaN where missing, or float32 ``(m, C, H, W)`` in [0, 1].

        Raises
        ------
        ValueError
            Naming the columns that hold infinity, or what is wrong with pixels.
        """
        if self._frame is not None:
            return self._take_frame(self._frame, index)
        part = self._array[index]
        if self.spec.kind == "table":
            table = _numbers(part)
            _check_infinite(table, self.spec.columns)
            return table
        return _pixels(part, self._layout)

    def _take_frame(self, frame: nw.DataFrame[Any], index: slice | npt.NDArray[np.intp]) -> Float64Array:
        part = frame[index] if isinstance(index, slice) else frame[index.tolist(), :]
        names = frame.columns
        columns = self.spec.details or tuple(Column(name) for name in names)
        if self._plain:  # all at once: there may be a hundred thousand of them
            table = part.to_numpy().astype(np.float64)
        else:
            table = np.column_stack([column.read(part[name]) for column, name in zip(columns, names, strict=True)])
        _check_infinite(table, tuple(names))
        return table


def _as_frame(X: Any) -> nw.DataFrame[Any] | None:
    try:
        frame = nw.from_native(X, eager_only=True, pass_through=True)
    except nw.exceptions.DuplicateError as error:
        raise ValueError(f"Two columns have one name. {' '.join(str(error).split())}: rename one.") from error
    if isinstance(frame, nw.DataFrame):
        named = [isinstance(name, str) for name in frame.columns]
        if any(named) and not all(named):
            numbered = [name for name, text in zip(frame.columns, named, strict=True) if not text]
            raise TypeError(
                f"Only some of the columns have names that are text; others are {_list(numbered)}. Name all of them "
                "by text, such as X.columns = X.columns.astype(str), or none."
            )
        return frame
    if isinstance(nw.from_native(X, pass_through=True), nw.LazyFrame):
        raise TypeError("X is a lazy frame; call .collect() on it first.")
    return None


def _of_numbered(frame: nw.DataFrame[Any], known: Collection[str]) -> tuple[Any, nw.DataFrame[Any] | None]:
    """Return as an array, or as a frame with names, what has numbers for names, as where pandas reads a file without.

    Of numbers alone it is an array, for such names are not worth remembering, unless some of them are ``known``.
    """
    named = frame.rename({name: str(name) for name in frame.columns})
    numbers = all(dtype.is_numeric() or dtype == nw.Boolean for dtype in frame.schema.values())
    return (frame.to_numpy(), None) if numbers and not set(known) & set(named.columns) else (None, named)


def _frame_spec(frame: nw.DataFrame[Any], expected: InputSpec | None, asked: Mapping[str, str] | None) -> InputSpec:
    ignored = tuple(name for name, kind in (asked or {}).items() if kind == IGNORED)
    names = [name for name in frame.columns if name not in ignored]
    if not names:
        raise ValueError("Found a frame with 0 feature(s) (shape=(n, 0)) while a minimum of 1 is required.")
    if expected is not None and expected.columns is not None:
        there, wanted = set(names), set(expected.columns)
        absent = [name for name in expected.columns if name not in there]
        extra = [name for name in names if name not in wanted and name not in expected.ignored]
        if absent or extra:
            problems = [f"missing: {_list(absent)}"] if absent else []
            problems += [f"not seen in training: {_list(extra)}"] if extra else []
            advice = "" if absent else " Leave out what was left out there, on the command line with --drop NAME."
            raise ValueError(f"The columns differ from those of training; {'; '.join(problems)}.{advice}")
        names = list(expected.columns)
    details = guess(frame, asked) if expected is None else expected.details
    if details is not None and all(column.kind == "number" for column in details):
        details = None
    return InputSpec("table", (len(names),), "columns", tuple(names), details, ignored)


def _as_array(X: Any) -> npt.NDArray[Any]:
    if scipy.sparse.issparse(X):
        raise TypeError("Sparse data was passed, but dense data is required: use X.toarray() to convert it.")
    if hasattr(X, "detach") and hasattr(X, "cpu"):  # a torch tensor
        tensor = X.detach().cpu()
        X = tensor.float() if str(tensor.dtype) in ("torch.bfloat16", "torch.float16") else tensor
        X = X.numpy()
    if isinstance(X, np.ma.MaskedArray) and np.ma.is_masked(X):  # what is masked is missing
        X = np.ma.filled(X.astype(np.float64), np.nan)
    array = np.asarray(X)
    if array.ndim == 0:
        raise ValueError(f"X must be an array of rows; got a single value of type {type(X).__name__}.")
    if np.iscomplexobj(array):
        raise ValueError("Complex data not supported: X holds complex numbers.")
    _check_no_dates(array)
    return array


def _check_no_dates(array: npt.NDArray[Any]) -> None:
    """Refuse dates and durations, which NumPy would turn into numbers: a missing one into -9.2e18."""
    dated = array.dtype.kind in "mM"
    if array.dtype == object:
        dated = any(isinstance(value, np.datetime64 | np.timedelta64) for value in array.flat)
    if dated:
        raise TypeError(
            f"X is an array that holds dates or durations ({array.dtype}). Pass a data frame with named columns, in "
            "which columns may be dates; turn durations into numbers."
        )


def _array_spec(array: npt.NDArray[Any], expected: InputSpec | None) -> InputSpec:
    if array.ndim == 1:
        raise ValueError(
            f"Expected rows and columns, got a 1-D array of length {len(array)}. Reshape your data "
            "either using array.reshape(-1, 1) if it has a single feature or array.reshape(1, -1) "
            "if it contains a single sample."
        )
    if array.ndim == 2:
        if array.shape[1] == 0:
            raise ValueError(f"Found array with 0 feature(s) (shape={array.shape}) while a minimum of 1 is required.")
        columns = expected.columns if expected is not None else None
        if columns is not None and len(columns) != array.shape[1]:
            columns = None
        return InputSpec("table", (array.shape[1],), "columns", columns)
    if array.ndim == 3:
        _, height, width = array.shape
        spec = InputSpec("image", (1, height, width), "hw")
    elif array.ndim == 4:
        _, second, third, last = array.shape
        # PyTorch's order wins where nothing else tells.
        ways = [InputSpec("image", (second, third, last), "chw")] if second in CHANNELS else []
        ways += [InputSpec("image", (last, second, third), "hwc")] if last in CHANNELS else []
        if not ways:
            raise ValueError(
                f"Images need 1, 3 or 4 channels as (n, channels, height, width) or "
                f"(n, height, width, channels); got shape {array.shape}."
            )
        if expected is not None:
            ways.sort(key=lambda way: (way.shape != expected.shape, way.layout != expected.layout))
        spec = ways[0]
    else:
        raise ValueError(f"Tables are 2-D and images 3-D or 4-D arrays; got {array.ndim} dimensions.")
    if min(spec.shape) == 0:
        raise ValueError(f"Images of shape {array.shape} hold no pixel.")
    return spec


def _enforce(spec: InputSpec, expected: InputSpec, owner: str) -> None:
    if spec.kind != expected.kind:
        raise ValueError(f"{owner} was trained on {expected.describe()}; got {spec.describe()}.")
    coded = [column.name for column in expected.details or () if column.kind in ("category", "date")]
    if coded and spec.details is None:  # an array
        raise ValueError(
            f"{owner} was trained on a data frame with categories or dates: {_list(coded)}. An array's numbers are "
            "neither; pass a data frame with the same columns."
        )
    if spec.shape != expected.shape:
        if spec.kind == "table":
            raise ValueError(
                f"X has {spec.shape[0]} features, but {owner} is expecting {expected.shape[0]} features as input."
            )
        raise ValueError(f"{owner} was trained on {expected.describe()}; got {spec.describe()}.")


def _numbers(part: npt.NDArray[Any]) -> Float64Array:
    if part.dtype == object:  # pandas' NA and NaT are no numbers to NumPy
        part = np.where(np.vectorize(is_missing, otypes=[bool])(part), np.nan, part)
    try:
        return np.ascontiguousarray(part, dtype=np.float64)
    except TypeError as error:
        raise TypeError(
            f"X holds values that are not numbers: {error}. Pass a data frame, in which columns may be text or dates."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"X holds values that are not numbers: {error}. Pass a data frame, in which columns may be text "
            "or dates, or encode text as numbers."
        ) from error


def _check_infinite(table: Float64Array, columns: tuple[str, ...] | None) -> None:
    # A sum is finite where all is; it may also overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        if math.isfinite(float(table.sum())) or not (infinite := np.isinf(table)).any():
            return
    bad = np.flatnonzero(infinite.any(axis=0))
    names = [columns[i] if columns else int(i) for i in bad]
    raise ValueError(
        f"Input X contains infinity (inf) in column{'s' if len(names) > 1 else ''} {_list(names)}. "
        "Drop those rows, or make the cells missing (NaN) if their values are unknown."
    )


def _pixels(part: npt.NDArray[Any], layout: Layout) -> Float32Array:
    if part.dtype == np.uint8:
        pixels = part.astype(np.float32) / np.float32(255)
    elif part.dtype == np.bool_:
        pixels = part.astype(np.float32)
    elif np.issubdtype(part.dtype, np.floating):
        if not np.isfinite(part).all():
            what = "NaN" if np.isnan(part).any() else "infinity (inf)"
            raise ValueError(f"Input X contains {what}: every pixel must be a number in [0, 1].")
        low, high = float(part.min()), float(part.max())
        if low < -PIXEL_SLACK or high > 1 + PIXEL_SLACK:
            advice = (
                "They look like 0–255: divide by 255, or pass them as uint8."
                if low >= 0 and high <= 255
                else "Rescale them to [0, 1] first."
            )
            raise ValueError(f"Float pixels must lie in [0, 1]; got {low:g} … {high:g}. {advice}")
        pixels = part.astype(np.float32).clip(0, 1)
    else:
        raise TypeError(f"Images must be uint8 or floats in [0, 1]; got {part.dtype}.")
    if layout == "hw":
        return pixels[:, None]
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 1)) if layout == "hwc" else pixels


def _list(names: list[Any]) -> str:
    shown = ", ".join(repr(name) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
