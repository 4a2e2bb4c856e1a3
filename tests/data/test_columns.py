"""Columns of every kind: what they are taken for, how their cells become numbers, and come back."""

from __future__ import annotations

import dataclasses
import datetime
import json
import warnings
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from offmanifold.data.columns import MOST_LEVELS, NEW, OTHER, Column
from offmanifold.data.inputs import InputSpec, Rows
from offmanifold.data.tables import Preparation
from offmanifold.data.transforms import HELD_OUT, Transform

DAY = datetime.datetime(2024, 1, 31, 6)
DATA: dict[str, list[Any]] = {
    "size": [1.5, None, 2.0, 4.0],
    "colour": ["red", "blue", None, "red"],
    "on": [True, False, None, True],
    "when": [DAY, None, DAY + datetime.timedelta(days=1), DAY],
}


def learned(X: Any, **keywords: Any) -> Rows:
    rows = Rows(X, **keywords)
    rows.learn(np.arange(len(rows)))
    return rows


@pytest.mark.parametrize("make", [pl.DataFrame, pd.DataFrame, pa.table])
def test_kinds_are_guessed_and_cells_come_back(make: Any) -> None:
    rows = learned(make(DATA))
    assert [column.kind for column in rows.spec.details or ()] == ["number", "category", "boolean", "date"]
    assert rows.spec.describe() == "a table of 4 columns (1 number, 1 category, 1 boolean, 1 date)"
    cells = rows.take(slice(0, 4))
    seconds = DAY.replace(tzinfo=datetime.UTC).timestamp()
    nan = np.nan
    expected = [[1.5, 1, 1, seconds], [nan, 0, 0, nan], [2, nan, nan, seconds + 86400], [4, 1, 1, seconds]]
    np.testing.assert_array_equal(cells, expected)
    assert rows.spec.present(cells).to_dict(as_series=False) == DATA
    assert InputSpec.from_json(rows.spec.to_json()) == rows.spec
    np.testing.assert_array_equal(Rows(rows.spec.present(cells), rows.spec).take(slice(0, 4)), cells)
    with pytest.raises(ValueError, match="categories or dates: 'colour', 'when'"):
        Rows(cells, rows.spec)


def test_ignored_columns_may_be_there_or_not() -> None:
    rows = learned(pl.DataFrame(DATA), columns={"colour": "ignored", "later": "ignored"})
    assert rows.spec.names == ("size", "on", "when") and rows.spec.ignored == ("colour", "later")
    assert InputSpec.from_json(json.loads(json.dumps(rows.spec.to_json()))) == rows.spec
    cells = rows.take(slice(0, 4))
    for frame in (pl.DataFrame(DATA).drop("colour"), pl.DataFrame(DATA).with_columns(later=pl.lit([]))):
        np.testing.assert_array_equal(Rows(frame, rows.spec).take(slice(0, 4)), cells)
    with pytest.raises(ValueError, match="not seen in training: 'other'"):
        Rows(pl.DataFrame(DATA).with_columns(other=1), rows.spec)
    with pytest.raises(ValueError, match="0 feature"):
        Rows(pl.DataFrame({"a": [1]}), columns={"a": "ignored"})


def test_other_types_than_in_training() -> None:
    """A CSV file, another library or a hole in a column of integers: what can be read is read."""
    spec = learned(pl.DataFrame(DATA | {"code": [1, 2, 2, 1]}), columns={"code": "category"}).spec
    text = {name: [None if v is None else str(v) for v in values] for name, values in DATA.items()}
    rows = Rows(pd.DataFrame(text | {"code": [1.0, 2.0, np.nan, 7.0]}), spec).take(slice(0, 4))
    first = Rows(pl.DataFrame(DATA | {"code": ["1", "2", None, "x"]}), spec).take(slice(0, 4))
    np.testing.assert_array_equal(rows, first)
    assert rows[:, 4].tolist()[:2] == [0, 1] and rows[3, 4] == 2  # of a level not seen
    for change, message in (
        ({"size": ["1", "?", "oops", "2"]}, "'size' is a number, and holds 'oops'"),
        ({"size": [DAY] * 4}, "'size' was a number in training; got Datetime"),
        ({"on": [2, 0, 1, 1]}, "'on' is boolean, and holds numbers other"),
        ({"on": ["perhaps"] * 4}, "'on' is a boolean, and holds 'perhaps'"),
        ({"when": [1, 2, 3, 4]}, "'when' was a date in training; got Int64"),
        ({"when": ["soon"] * 4}, "'when' holds text that is no date"),
    ):
        with pytest.raises(ValueError, match=message):
            Rows(pl.DataFrame(DATA | {"code": [1] * 4} | change), spec).take(slice(0, 4))


def test_time_zones() -> None:
    hours = pl.datetime_range(DAY, DAY + datetime.timedelta(hours=3), "1h", eager=True, time_zone="Europe/Budapest")
    frame = pl.DataFrame({"when": hours})
    spec = learned(frame).spec
    assert spec.details is not None and spec.details[0].zone == "Europe/Budapest"
    here = Rows(frame, spec).take(slice(0, 4))
    assert here[0, 0] % 86400 == 6 * 3600  # the column's own clock
    elsewhere = frame.with_columns(pl.col("when").dt.convert_time_zone("Asia/Tokyo"))
    np.testing.assert_array_equal(Rows(elsewhere, spec).take(slice(0, 4)), here)
    with pytest.raises(ValueError, match=r"other time zones than in training \(there: Europe/Budapest; here: none\)"):
        Rows(frame.with_columns(pl.col("when").dt.replace_time_zone(None)), spec).take(slice(0, 4))


def test_dates_that_python_holds_keep_their_zone() -> None:
    there = pd.date_range("2024-03-01 12:00", periods=30, freq="7h", tz="Europe/Budapest")
    elsewhere = there.tz_convert("Asia/Tokyo").astype(object)
    rows = learned(pd.DataFrame({"at": there}))
    expected = rows.take(slice(None))
    np.testing.assert_array_equal(Rows(pd.DataFrame({"at": elsewhere}), rows.spec).take(slice(None)), expected)
    objects = learned(pd.DataFrame({"at": there.astype(object)}))
    assert objects.spec.details is not None and objects.spec.details[0].zone == "Europe/Budapest"
    np.testing.assert_array_equal(objects.take(slice(None)), expected)
    fixed = [when.to_pydatetime().astimezone(datetime.timezone(datetime.timedelta(hours=2))) for when in there]
    offset = learned(pd.DataFrame({"at": pd.Series(fixed, dtype=object)}))
    assert offset.spec.details is not None and offset.spec.details[0].zone == "UTC"
    with pytest.raises(ValueError, match="other time zones than in training .there: Europe/Budapest; here: none"):
        Rows(pd.DataFrame({"at": there.tz_localize(None).astype(object)}), rows.spec).take(slice(None))


@pytest.mark.parametrize("make", [pl.DataFrame, pd.DataFrame])
def test_dates_as_text_are_read_alike_whatever_stands_beside_them(make: Any) -> None:
    rows = learned(make({"at": ["26.02.2023", "05.02.2023", None]}), columns={"at": "date"})
    assert rows.spec.present(rows.take(slice(None)))["at"].to_list() == [
        datetime.datetime(2023, 2, 26), datetime.datetime(2023, 2, 5), None
    ]  # fmt: skip
    alone = Rows(make({"at": ["05.02.2023"]}), rows.spec).take(slice(None))
    np.testing.assert_array_equal(alone, rows.take(slice(1, 2)))
    zoned = learned(make({"at": ["2023-02-05T10:00:00Z", "2023-02-05T12:00:00+01:00"]}), columns={"at": "date"})
    assert zoned.spec.details is not None and zoned.spec.details[0].zone == "UTC"
    assert np.diff(zoned.take(slice(None))[:, 0]) == 3600
    with pytest.raises(ValueError, match=r"month first .the first is '02/26/2023'.. Write all of them as"):
        learned(make({"at": ["02/26/2023", "02/05/2023"]}), columns={"at": "date"})


def test_what_pandas_has_for_nothing() -> None:
    plain = pd.DataFrame({"t": ["u", "v", None] * 10, "x": [1.0, None, 2.0] * 10})
    expected = learned(plain).take(slice(None))
    held = plain.assign(t=plain["t"].astype(object).where(plain["t"].notna(), pd.NA))
    mixed = plain.assign(x=plain["x"].astype(object).where(plain["x"].notna(), pd.NA))
    for frame in (plain.convert_dtypes(), held, mixed, plain.convert_dtypes(dtype_backend="pyarrow")):
        rows = learned(frame)
        assert [column.kind for column in rows.spec.details or ()] == ["category", "number"]
        np.testing.assert_array_equal(rows.take(slice(None)), expected)


def test_whole_numbers_as_levels_however_they_are_written() -> None:
    rows = learned(pl.DataFrame({"x": ["1", "2", "10", "v1.0"]}), columns={"x": "category"})
    codes = rows.take(slice(None))[:, 0]
    again = Rows(pl.DataFrame({"x": ["1.0", "2.0", "10", "v1.0"]}), rows.spec).take(slice(None))[:, 0]
    np.testing.assert_array_equal(again, codes)
    new = Rows(pl.DataFrame({"x": ["3.0", "1.5", "v1", ".0"]}), rows.spec).take(slice(None))[:, 0]
    assert (new == 4).all()


def test_the_last_date_there_is_comes_back() -> None:
    ends = [datetime.datetime(1, 1, 1), datetime.datetime(2024, 1, 1), datetime.datetime(9999, 12, 31)]
    rows = learned(pl.DataFrame({"at": ends}))
    assert rows.spec.present(rows.take(slice(None)))["at"].to_list() == ends


def test_every_type_in_one_column() -> None:
    odd = [1, "x", 2.5, True, None, datetime.date(2020, 1, 1)]
    rows = learned(pd.DataFrame({"odd": pd.Series(odd, dtype=object), "n": range(6)}))
    assert rows.spec.details is not None
    assert set(rows.spec.details[0].levels) == {"1", "x", "2.5", "true", "2020-01-01"}
    assert np.isnan(rows.take(slice(0, 6))[4, 0])
    with pytest.raises(ValueError, match=r"Only columns of numbers.*'l' \(List\(Int64\)\).*--drop NAME"):
        Rows(pl.DataFrame({"l": [[1], [2]], "a": [1, 2]}))


@pytest.mark.parametrize("values", [[1, None], [True, None], [datetime.date(2020, 1, 1), None]])
def test_objects_of_one_type_are_that_type(values: list[Any]) -> None:
    spec = Rows(pd.DataFrame({"x": pd.Series(values, dtype=object), "t": ["a", "b"]})).spec
    assert spec.details is not None
    assert spec.details[0].kind == {int: "number", bool: "boolean", datetime.date: "date"}[type(values[0])]


def test_a_category_of_ten_thousand_levels_is_lumped() -> None:
    rng = np.random.default_rng(0)
    frequent = [f"f{i}" for i in range(50)]
    values = [f"rare {i}" for i in range(10_000)] + list(rng.choice(frequent, 5000))
    rows = learned(pl.DataFrame({"x": values}))
    assert rows.spec.details is not None
    (column,) = rows.spec.details
    assert column.levels == (*sorted(frequent), OTHER) and len(column.levels) < MOST_LEVELS
    cells = rows.take(slice(0, 2))
    assert (cells == 50).all()
    assert "10,050 levels" in rows.remarks(rows.take(slice(None)))[0]
    assert Rows(pl.DataFrame({"x": ["new"]}), rows.spec).take(slice(0, 1)) == 50


def test_columns_that_say_nothing_are_named() -> None:
    n = 60
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({
        "id": range(100, 100 + n), "name": [f"n{i}" for i in range(n)], "same": [3.0] * n, "one": ["a"] * n,
        "empty": [None] * n, "good": rng.normal(size=n), "group": rng.choice(["a", "b"], n),
    })  # fmt: skip
    rows = learned(frame)
    told = rows.remarks(rows.take(slice(None)))
    for name, word in {"id": "identifier", "name": "identifier", "same": "constant", "one": "constant",
                       "empty": "empty"}.items():  # fmt: skip
        (remark,) = [text for text in told if f"'{name}'" in text]
        assert word in remark and f"--drop {name}" in remark
    assert len(told) == 5
    # Numbers that were not understood are no identifiers, however many there are.
    for cells, word in (
        ([f"{value:.3f}".replace(".", ",") for value in rng.normal(size=150)], "with a decimal comma, such as"),
        (["-", "-", *(f"{value:.3f}" for value in rng.normal(size=150))], "is text for '-', and all its other values"),
    ):
        sensor = learned(pl.DataFrame({"x": cells}))
        (remark,) = sensor.remarks(sensor.take(slice(None)))
        assert word in remark and "identifier" not in remark
    # Dates that rise from row to row are a clock; in any order they may come again.
    days = pl.datetime_range(pl.datetime(2024, 1, 1), pl.datetime(2024, 1, 3), "1h", eager=True)
    for order, count in ((np.arange(len(days)), 1), (rng.permutation(len(days)), 0)):
        dated = learned(pl.DataFrame({"at": days[order], "x": rng.normal(size=len(days))}))
        told = dated.remarks(dated.take(slice(None)))
        assert len(told) == count and all("'at' is a clock" in text and "--drop at" in text for text in told)
    # One cell that is no number makes a category of a column of numbers.
    slip = learned(pl.DataFrame({"x": ["foo", *(f"{value:.3f}" for value in rng.normal(size=n - 1))]}))
    (remark,) = slip.remarks(slip.take(slice(None)))
    assert "is text for 'foo', and all but a few" in remark and "identifier" not in remark
    # Of an array's columns nothing is said, but that all its rows are alike.
    array = rng.normal(size=(60, 2))
    assert Rows(array).remarks(array) == []
    (remark,) = Rows(array).remarks(np.ones((60, 2)))
    assert "All rows of training are alike" in remark
    # Numbers that count the rows in any order, in steps too; not whole numbers that hardly ever repeat.
    order = rng.permutation(300)
    counts = learned(pl.DataFrame({"any": order, "seventh": 7 * order, "wide": rng.integers(0, 10**6, 300)}))
    assert ["'any'" in text or "'seventh'" in text for text in counts.remarks(counts.take(slice(None)))] == [True, True]
    # What stands for a missing number makes text of the others.
    for few in (9, 400):
        blank = learned(pl.DataFrame({"x": [f"{i % few}" if i % 7 else "NA" for i in range(500)]}))
        (remark,) = blank.remarks(blank.take(slice(None)))
        assert "text for 'NA', and all its other values are numbers" in remark and "columns={'x': 'number'}" in remark


def test_names_and_kinds_must_be_known() -> None:
    with pytest.raises(ValueError, match="columns names 'colou', .* Did you mean 'colour'"):
        Rows(pl.DataFrame(DATA), columns={"colou": "category"})
    with pytest.raises(ValueError, match=r"columns\['colour'\]='word' is unknown. Known: boolean, category"):
        Rows(pl.DataFrame(DATA), columns={"colour": "word"})
    with pytest.raises(ValueError, match="X is not one"):
        Rows(np.ones((2, 2)), columns={"colour": "category"})
    with pytest.raises(ValueError, match="Two columns have one name. .*'a' 2 times: rename one"):
        Rows(pd.DataFrame([[1, 2]], columns=["a", "a"]))


# --- preparation ---------------------------------------------------------------------------------------


@pytest.fixture
def mixed() -> tuple[Rows, np.ndarray, Preparation]:
    rng = np.random.default_rng(0)
    n = 400
    when = [DAY + datetime.timedelta(hours=float(h)) for h in rng.uniform(0, 24 * 40, n)]
    rows = learned(
        pl.DataFrame(
            {
                "size": rng.normal(5, 3, n),
                "colour": rng.choice(["red", "green", "blue"], n, p=[0.8, 0.15, 0.05]),
                "on": rng.random(n) < 0.3,
                "when": when,
            }
        )
    )
    cells = rows.take(slice(None)).astype(np.float64)
    return rows, cells, Preparation.fit(cells, rows.spec.details or ())


def test_each_column_weighs_one(mixed: Any) -> None:
    _, cells, preparation = mixed
    prepared = preparation.transform(cells).astype(float)
    assert preparation.cycles == ((), (), (), ("day", "week"))
    assert preparation.widths == [1, 4, 1, 5]
    variances = prepared.var(0)
    np.testing.assert_allclose([variances[preparation.owner == i].sum() for i in range(4)], [1, 1, 1, 3], rtol=1e-3)
    np.testing.assert_allclose(preparation.inverse(prepared), cells, rtol=1e-5, atol=1e-5)


def test_each_column_weighs_one_of_the_cells_that_are_there(mixed: Any) -> None:
    rows, cells, _ = mixed
    gone = cells.copy()
    gone[::2, 1:] = np.nan
    preparation = Preparation.fit(gone, rows.spec.details or ())
    prepared = preparation.transform(gone).astype(float)
    variances = np.nanvar(prepared, 0)
    np.testing.assert_allclose([variances[preparation.owner == i].sum() for i in range(4)], [1, 1, 1, 3], rtol=1e-3)


def test_what_is_missing_is_missing_in_all_its_cells(mixed: Any) -> None:
    _, cells, preparation = mixed
    gone = cells[:4].copy()
    np.fill_diagonal(gone, np.nan)
    prepared = preparation.transform(gone)
    np.testing.assert_array_equal(np.isnan(prepared), preparation.owner == np.arange(4)[:, None])
    np.testing.assert_array_equal(np.isnan(preparation.inverse(prepared.astype(float))), np.isnan(gone))


def test_normal_columns_are_left_as_they_are() -> None:
    """Of sixty rows twelve judge: another transform is better by chance in a fifth of such columns."""
    rng = np.random.default_rng(0)
    chosen = [Transform.choose(rng.normal(size=60)).name for _ in range(200)]
    assert chosen.count("none") >= 190


def test_a_new_level_lies_farther_out_than_any_known_one(mixed: Any) -> None:
    rows, cells, preparation = mixed
    new = cells[:1].copy()
    new[0, 1] = 3
    prepared = preparation.transform(new)
    assert prepared[0, 4] == pytest.approx(np.sqrt(2 * np.log(402)), rel=1e-5)
    assert rows.spec.present(preparation.inverse(prepared.astype(float)))["colour"].to_list() == [NEW]
    frequent = preparation.transform(cells)[:, 1:5]
    assert np.abs(frequent[:, 3]).max() == 0


def test_cycles_need_their_span() -> None:
    def cycles(hours: Any) -> tuple[str, ...]:
        when = [DAY + datetime.timedelta(hours=float(h)) for h in hours]
        rows = learned(pl.DataFrame({"when": when}))
        return Preparation.fit(rows.take(slice(None)).astype(float), rows.spec.details or ()).cycles[0]

    assert cycles(np.arange(40)) == ()
    assert cycles(np.arange(60)) == ("day",)
    assert cycles(24 * np.arange(30)) == ("week",)
    assert cycles(24 * np.arange(1000)) == ("week", "year")


# --- heavy tails ---------------------------------------------------------------------------------------


def test_a_transform_is_chosen_by_what_makes_held_out_values_likeliest() -> None:
    rng = np.random.default_rng(0)
    normal = rng.normal(3, 2, 2000)
    chosen = {
        "normal": normal, "cauchy": rng.standard_cauchy(2000), "lognormal": np.exp(2 * normal),
        "two humps": np.concatenate([rng.normal(-10, 1, 1000), rng.normal(10, 1, 1000)])[rng.permutation(2000)],
        "counts": rng.geometric(0.05, 2000).astype(float) ** 3, "few": np.exp(normal[:30]), "constant": np.ones(200),
    }  # fmt: skip
    found = {name: Transform.choose(values) for name, values in chosen.items()}
    assert {name: transform.name for name, transform in found.items()} == {
        "normal": "none", "cauchy": "signed log", "lognormal": "quantiles", "two humps": "none",
        "counts": "signed log", "few": "none", "constant": "none",
    }  # fmt: skip
    for name, transform in found.items():
        values = np.sort(chosen[name])
        inner = transform(values)
        assert (np.diff(inner) >= 0).all()
        np.testing.assert_allclose(transform.inverse(inner), values, rtol=1e-6, atol=1e-9)
        assert Transform.from_json(json.loads(json.dumps(dataclasses.asdict(transform)))) == transform
        assert np.isnan(transform(np.array([np.nan]))).all() and np.isfinite(transform(np.array([1e300]))).all()


@pytest.mark.parametrize("n", [200, 1000, 5000])
def test_quantiles_are_no_choice_where_modes_have_a_gap(n: int) -> None:
    """Lines between quantiles would make one value of all that lies in the gap, where what is odd may lie."""
    for seed in range(10):
        rng = np.random.default_rng(seed)
        offered = {
            "lognormal": rng.lognormal(0, 2, n), "t": rng.standard_t(2, n), "laplace": rng.laplace(size=n),
            "uniform": rng.uniform(size=n), "u-shaped": rng.beta(0.5, 0.5, n),
        }  # fmt: skip
        for name, values in offered.items():
            assert "quantiles" in [one.name for one in Transform._candidates(values)], name
        for share in (0.1, 0.5):
            far = rng.normal(size=n) + 100 * (np.arange(n) < share * n)
            assert "quantiles" not in [one.name for one in Transform._candidates(far)]
            transform = Transform.choose(rng.permutation(far))
            modes, gap = transform(np.array([0.0, 100.0])), transform(np.array([25.0, 50.0, 75.0]))
            assert (np.diff(gap) > 0.02 * np.diff(modes)).all()


@pytest.mark.parametrize("name", ["signed log", "quantiles"])
def test_a_transforms_slope_is_its_derivative(name: str) -> None:
    values = np.random.default_rng(0).normal(size=500)
    (transform,) = [one for one in Transform._candidates(values) if one.name == name]
    # Between knots, where lines have their corners.
    at = np.linspace(-4, 4, 83) + 1e-3
    numeric = (transform(at + 1e-7) - transform(at - 1e-7)) / 2e-7
    np.testing.assert_allclose(np.exp(transform.log_slope(at)), numeric, rtol=1e-4)


def test_a_column_that_only_what_judges_tells_apart_stays_as_it_is() -> None:
    """All that transforms are learned from is one value: no unit, and nothing to divide by."""
    values = np.full(300, 2.0)
    values[: 3 * HELD_OUT : HELD_OUT] = 7.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Transform.choose(values).name == "none"


@pytest.mark.parametrize(
    ("levels", "later"),
    [
        # As pandas writes codes beside gaps.
        (["1.0", "2.0", None], [["1", "2", None], [1, 2, None], [1.0, 2.0, None]]),
        (["True", "False", None], [[True, False, None], ["true", "false", None]]),
    ],
)
def test_levels_written_as_floats_or_words_are_known_otherwise(levels: Any, later: Any) -> None:
    rows = learned(pl.DataFrame({"x": levels}), columns={"x": "category"})
    codes = rows.take(slice(None))[:, 0]
    for cells in later:
        again = Rows(pl.DataFrame({"x": cells}), rows.spec).take(slice(None))[:, 0]
        np.testing.assert_array_equal(again, codes)


def test_transforms_of_values_near_the_limit_of_floats() -> None:
    values = 10.0 ** (200 * np.random.default_rng(0).uniform(-1, 1, 400))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        chosen = Transform.choose(values)
        assert chosen.name != "none" and np.isfinite(chosen.log_slope(values)).all()
        assert np.isfinite(Transform("signed log").log_slope(np.array([-1e300, 0.0, 1e300]))).all()


def test_without_a_scale_numbers_and_booleans_stay_as_they_are() -> None:
    cells = np.column_stack([np.random.default_rng(0).normal(3, 9, 200), np.arange(200) % 2])
    bare = Preparation.fit(cells, [Column("a"), Column("b", "boolean")], None)
    np.testing.assert_allclose(bare.transform(cells), cells, rtol=1e-6)
