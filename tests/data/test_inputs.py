"""Whatever a user has: accepted and described, or refused with what is wrong and what is wanted."""

from __future__ import annotations

from typing import Any

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import scipy.sparse
import torch
from conftest import QUICK
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from offmanifold import AE
from offmanifold.data.inputs import InputSpec, Rows
from offmanifold.data.tables import Standardiser

NUMBERS = np.arange(12.0).reshape(4, 3)


@pytest.mark.parametrize(
    ("X", "kind", "shape", "layout"),
    [
        (NUMBERS, "table", (3,), "columns"),
        (NUMBERS.astype(int).tolist(), "table", (3,), "columns"),
        (NUMBERS.astype(object), "table", (3,), "columns"),
        (torch.tensor(NUMBERS), "table", (3,), "columns"),
        (torch.zeros(4, 3, dtype=torch.bfloat16, requires_grad=True), "table", (3,), "columns"),
        (np.zeros((4, 8, 9), np.uint8), "image", (1, 8, 9), "hw"),
        (np.zeros((4, 3, 8, 9)), "image", (3, 8, 9), "chw"),
        (np.zeros((4, 8, 9, 3)), "image", (3, 8, 9), "hwc"),
        (np.zeros((4, 3, 8, 3)), "image", (3, 8, 3), "chw"),  # ambiguous: PyTorch's order wins
        (np.zeros((4, 8, 9), bool), "image", (1, 8, 9), "hw"),
        (pd.DataFrame(NUMBERS), "table", (3,), "columns"),
    ],
)
def test_what_rows_are(X: Any, kind: str, shape: tuple[int, ...], layout: str) -> None:
    rows = Rows(X)
    assert (rows.spec.kind, rows.spec.shape, rows.spec.layout) == (kind, shape, layout)
    assert len(rows) == 4
    assert rows.take(slice(1, 3)).shape == (2, *shape)
    assert rows.take(np.array([3, 0])).shape == (2, *shape)
    assert InputSpec.from_json(rows.spec.to_json()) == rows.spec


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (np.array([[1.0, np.inf]]), ValueError, r"contains infinity \(inf\) in column 1. Drop those rows, or make"),
        (np.array([[np.nan, -np.inf], [1, 2]]), ValueError, "infinity .* in column 1"),
        (pl.DataFrame({"a": [1.0, np.inf], "b": [None, 2]}), ValueError, "infinity .* in column 'a'"),
        (np.zeros((0, 3)), ValueError, r"0 sample\(s\)"),
        (np.zeros((3, 0)), ValueError, r"0 feature\(s\)"),
        (pl.DataFrame(), ValueError, r"0 feature\(s\)"),
        (np.zeros(3), ValueError, "Reshape your data"),
        (3.0, ValueError, "must be an array of rows; got a single value of type float"),
        (np.zeros((2, 3, 4, 5, 6)), ValueError, "got 5 dimensions"),
        (np.zeros((2, 5, 5, 5)), ValueError, r"need 1, 3 or 4 channels .* got shape \(2, 5, 5, 5\)"),
        (np.zeros((2, 0, 5)), ValueError, "hold no pixel"),
        (np.ones((2, 3)) * 1j, ValueError, "Complex data not supported"),
        (np.array([["2024-01-01"], ["NaT"]], "datetime64[D]"), TypeError, r"\(datetime64\[D\]\). Pass a data frame"),
        (np.array([[1, 2]], "timedelta64[s]"), TypeError, "dates or durations.*named columns"),
        (np.array([[np.datetime64("2024-01-01"), 1]], object), TypeError, "dates or durations"),
        (np.array([[pd.Timestamp(0), 1.0]], object), TypeError, "not numbers: .*Pass a data frame"),
        (pd.DataFrame(NUMBERS, columns=["a", 1, "b"]), TypeError, r"others are 1\. Name all of them"),
        (scipy.sparse.eye(3), TypeError, "Sparse data was passed.*toarray"),
        (np.array([[{}, 1]], dtype=object), TypeError, "not numbers: .*argument must be"),
        (np.array([["a", "b"]]), ValueError, "could not convert string.*Pass a data frame"),
        (np.full((2, 4, 4), 200.0), ValueError, r"must lie in \[0, 1\]; got 200 … 200.*look like 0–255: divide by 255"),
        (np.full((2, 4, 4), -1.0), ValueError, r"got -1 … -1. Rescale"),
        (np.full((2, 4, 4), np.nan), ValueError, "contains NaN: every pixel"),
        (np.zeros((2, 4, 4), np.int64), TypeError, "must be uint8 or floats.*int64"),
        (pl.LazyFrame({"a": [1]}), TypeError, "lazy frame; call .collect"),
        (pl.DataFrame({"a": [1.0], "b": [[1]]}), ValueError, r"Only columns of numbers, .*'b' \(List.*Drop"),
    ],
)  # fmt: skip
def test_what_is_refused(X: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Rows(X).take(slice(0, None))


def test_columns_that_pandas_numbered() -> None:
    cells = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, 6.0]])
    nullable = pd.DataFrame(cells).convert_dtypes()
    held = np.array([[1, 2], [3, pd.NA], [5, 6]], dtype=object)
    for X in (pd.DataFrame(cells), nullable, held):
        rows = Rows(X)
        assert rows.spec.columns is None
        np.testing.assert_array_equal(rows.take(slice(None)), cells)
    # What an array cannot hold has the numbers for names, and so has a later part of it that an array could.
    mixed = pd.DataFrame({0: [1.0, 2.0, 3.0], 1: ["a", None, "b"], 2: pd.to_datetime(["2024-01-01"] * 3)})
    rows = Rows(mixed)
    rows.learn(np.arange(3))
    assert rows.spec.columns == ("0", "1", "2")
    assert [column.kind for column in rows.spec.details or ()] == ["number", "category", "date"]
    blank = pd.DataFrame({0: [1.0, 2.0, 3.0], 1: np.nan, 2: np.nan})
    np.testing.assert_array_equal(Rows(blank, rows.spec).take(slice(None)), [[i, np.nan, np.nan] for i in (1, 2, 3)])
    by_number = Rows(pd.DataFrame({0: [1.0, 2.0], 1: [7, 8]}), columns={1: "category"})  # type: ignore[dict-item]
    assert by_number.spec.details is not None and by_number.spec.details[1].kind == "category"
    with pytest.raises(TypeError, match="columns must say of columns what they are.*; got list"):
        Rows(mixed, columns=["1"])  # type: ignore[arg-type]


def test_what_is_masked_is_missing() -> None:
    masked = np.ma.masked_greater(np.arange(6).reshape(3, 2), 3)
    np.testing.assert_array_equal(Rows(masked).take(slice(None)), [[0, 1], [2, 3], [np.nan, np.nan]])
    unmasked = Rows(np.ma.masked_greater(np.arange(6).reshape(3, 2), 9)).take(slice(None))
    np.testing.assert_array_equal(unmasked, np.arange(6).reshape(3, 2))


def test_masks_as_bytes_are_noticed() -> None:
    masks = np.random.default_rng(0).random((20, 4, 4)) > 0.5
    for images, told in ((masks.astype(np.uint8), 1), (masks, 0), (masks.astype(np.uint8) * 255, 0), (masks / 255, 0)):
        rows = Rows(images)
        assert len(rows.remarks(rows.take(slice(None)))) == told


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, pa.table])
def test_frames_are_read_by_name(make: Any) -> None:
    data = {"a": [1.0, 2.0], "b": [3, 4], "c": [True, False]}
    spec = Rows(make(data)).spec
    assert spec.columns == ("a", "b", "c")
    shuffled = make({name: data[name] for name in ("c", "a", "b")})
    np.testing.assert_array_equal(Rows(shuffled, spec).take(slice(0, 2)), [[1, 3, 1], [2, 4, 0]])
    with pytest.raises(ValueError, match=r"missing: 'c'; not seen in training: 'd', 'e'"):
        Rows(make({"a": [1], "b": [1], "d": [1], "e": [1]}), spec)
    np.testing.assert_array_equal(Rows(np.ones((1, 3)), spec).take(slice(0, 1)), np.ones((1, 3)))
    assert Rows(make(data), Rows(NUMBERS).spec).spec.columns is None


@pytest.mark.parametrize("make", [pl.DataFrame, pd.DataFrame, pa.table])
def test_missing_cells_are_nan(make: Any) -> None:
    frame = make({"a": [1.0, None], "b": [None, 2]})
    np.testing.assert_array_equal(Rows(frame).take(slice(0, 2)), [[1, np.nan], [np.nan, 2]])
    np.testing.assert_array_equal(Rows(np.array([[1.0, None]], dtype=object)).take(slice(0, 1)), [[1, np.nan]])


def test_standardisation_knows_the_cells_that_are_there() -> None:
    rows = np.random.default_rng(0).normal(3, 2, size=(50, 3))
    gappy = np.concatenate([rows, np.full((5, 3), np.nan)])
    gappy[:, 2] = np.nan
    fitted, whole = Standardiser.fit(gappy), Standardiser.fit(rows)
    np.testing.assert_allclose(fitted.mean, [*whole.mean[:2], 0])
    np.testing.assert_allclose(fitted.scale, [*whole.scale[:2], 1])
    np.testing.assert_array_equal(np.isnan(fitted.transform(gappy)), np.isnan(gappy))


@settings(max_examples=60, deadline=None)
@given(
    rows=arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=st.floats(-1e6, 1e6)),
    order=st.randoms(),
)
def test_column_order_never_matters(rows: np.ndarray, order: Any) -> None:
    names = [f"c{i}" for i in range(rows.shape[1])]
    spec = Rows(pl.DataFrame(rows, schema=names, orient="row")).spec
    shuffled = names.copy()
    order.shuffle(shuffled)
    frame = pd.DataFrame(rows, columns=names)[shuffled]
    np.testing.assert_array_equal(Rows(frame, spec).take(slice(0, None)), rows)
    assert isinstance(nw.from_native(frame), nw.DataFrame)


@settings(max_examples=80, deadline=None)
@given(
    arrays(
        np.float64,
        st.tuples(st.integers(2, 8), st.integers(1, 4)),
        elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
    )
)
def test_standardised_columns_are_finite_and_come_back(rows: np.ndarray) -> None:
    fitted = Standardiser.fit(rows)
    standard = fitted.transform(rows)
    assert np.isfinite(standard).all()
    assert (fitted.scale > 0).all()
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-3)
    spread = np.abs(rows).max(0)
    np.testing.assert_allclose(fitted.inverse(standard.astype(float)), rows, atol=1e-5 * spread.max() + 1e-30)
    assert np.isfinite(fitted.transform(np.full((1, rows.shape[1]), 1e308))).all()


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 4), c=st.sampled_from([1, 3, 4]), h=st.integers(5, 9), w=st.integers(5, 9),
    layout=st.sampled_from(["chw", "hwc"]), eight_bit=st.booleans(),
)  # fmt: skip
def test_images_come_back_in_their_layout(n: int, c: int, h: int, w: int, layout: str, eight_bit: bool) -> None:
    shape = (n, c, h, w) if layout == "chw" else (n, h, w, c)
    X = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    rows = Rows(X if eight_bit else X / 255)
    canonical = rows.take(slice(0, None))
    assert canonical.shape == (n, c, h, w) and canonical.dtype == np.float32
    np.testing.assert_allclose(rows.spec.arrange(canonical.astype(float)), X / 255, atol=1e-7)


def layouts(pixels: np.ndarray) -> dict[str, np.ndarray]:
    """Return canonical pixels ``(n, C, H, W)`` in every layout that they can have."""
    found = {"chw": pixels, "hwc": np.ascontiguousarray(np.moveaxis(pixels, 1, -1))}
    return found | ({"hw": pixels[:, 0]} if pixels.shape[1] == 1 else {})


@pytest.mark.parametrize("shape", [(1, 5, 6), (3, 5, 6), (4, 5, 6), (1, 3, 6), (3, 6, 3), (3, 1, 6), (1, 6, 1)])
def test_images_are_read_in_the_layout_that_they_come_in(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (7, *shape)).astype(np.uint8)
    came = layouts(pixels)
    for layout in came:
        spec = InputSpec("image", shape, layout)  # type: ignore[arg-type]
        for name, X in came.items():
            if name == "chw" and layout == "hwc" and shape[0] == shape[2]:
                continue  # either may be meant, and is what it was in training
            rows = Rows(X, spec)
            assert rows.spec == spec
            np.testing.assert_array_equal(rows.take(slice(0, 7)), pixels / np.float32(255))
            np.testing.assert_array_equal(rows.take(np.array([2])), pixels[2:3] / np.float32(255))
            np.testing.assert_allclose(rows.present(), X / 255, atol=1e-7)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_score_alike_in_every_layout(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, channels, 5, 6)).astype(np.uint8)
    came = layouts(pixels)
    for trained in came.values():
        detector = AE(**QUICK).fit(trained)
        scores = detector.score_samples(trained)
        for X in came.values():
            np.testing.assert_array_equal(detector.score_samples(X), scores)
            assert detector.reconstruct(X).shape == X.shape


def test_numbers_too_wide_for_numpy() -> None:
    wide = [10**20, None, -(10**20)]
    for more in ({}, {"kind": ["x", "y", "x"]}):
        rows = Rows(pl.DataFrame({"id": wide, "x": [1, 2, 3], **more}))
        rows.learn(np.arange(3))
        np.testing.assert_array_equal(rows.take(slice(0, 3))[:, 0], [1e20, np.nan, -1e20])


def test_pixels_a_rounding_error_outside_are_clipped() -> None:
    X = np.full((1, 4, 4), 1 + 5e-7)
    assert Rows(X).take(slice(0, 1)).max() == 1


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [0]},
        {"shape": [3, 4]},
        {"layout": "hw"},
        {"kind": "sound"},
        {"columns": ["a"]},
        {"shape": "x"},
        {"shape": None},
    ],
)
def test_a_damaged_spec_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="input description"):
        InputSpec.from_json(Rows(NUMBERS).spec.to_json() | change)


def test_rows_that_hold_nothing_are_warned_of() -> None:
    cells = np.random.default_rng(0).normal(size=(30, 2))
    cells[::3] = np.nan
    for X in (cells, pd.DataFrame(cells, columns=["a", "b"])):
        rows = Rows(X)
        assert any(remark.startswith("10 of the 30 rows of training hold nothing") for remark in rows.remarks(cells))
    assert not Rows(cells[1::3]).remarks(cells[1::3])


def test_large_numbers_that_hardly_differ_stay_within_reach() -> None:
    """Nanoseconds within a millisecond: by a scale of 1 their cells would run to a million."""
    rows = np.column_stack([1.7e18 + np.arange(100.0) * 1e4, np.arange(100.0)])
    assert np.abs(Standardiser.fit(rows).transform(rows)).max() < 3
    rows[0, 1] = np.nan
    assert np.abs(np.nan_to_num(Standardiser.fit(rows).transform(rows))).max() < 3
