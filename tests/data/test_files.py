"""Files and folders on disk."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from PIL import Image

from offmanifold.data import benchmarks
from offmanifold.data.files import open_source, read_column

FRAME = pl.DataFrame({"a": [1.0, 2.0, 3.5], "b": [1, 2, 3], "name": ["x", "y", "z"]})


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    FRAME.write_csv(path) if suffix == ".csv" else FRAME.write_parquet(path)
    source = open_source(path, drop=["name"])
    assert source.load().to_dict(as_series=False) == {"a": [1.0, 2.0, 3.5], "b": [1, 2, 3]}
    chunks = list(open_source(path, drop=["name"]).chunks(2))
    assert [len(chunk) for chunk in chunks] in ([2, 1], [1, 1, 1], [1, 2])
    assert pl.concat(chunks)["a"].to_list() == [1.0, 2.0, 3.5]
    assert read_column(path, "b").tolist() == [1, 2, 3]
    with pytest.raises(ValueError, match="no column 'nam' to drop. Did you mean 'name'"):
        open_source(path, drop=["nam"])
    with pytest.raises(ValueError, match="no column 'c'"):
        read_column(path, "c")


def test_a_decimal_point_after_ten_thousand_whole_numbers(tmp_path: Path) -> None:
    path = tmp_path / "late.csv"
    path.write_text("a\n" + "1\n" * 10_000 + "1.5\n")
    assert open_source(path).load()["a"].to_list()[-1] == 1.5


@pytest.mark.parametrize(
    ("dates", "warned"),
    [
        (["02/01/2015", "03/01/2015"], True),
        (["02.01.2015", "26.01.2015"], False),
        (["2015-01-02", "2015-01-03"], False),
        (["01/01/2015", "03/03/2015"], False),
    ],
)
def test_dates_that_may_be_month_first_are_warned_of(tmp_path: Path, dates: list[str], warned: bool) -> None:
    path = tmp_path / "d.csv"
    pl.DataFrame({"at": dates, "x": [1.0, 2.0]}).write_csv(path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        read = open_source(path).load()
    assert isinstance(read["at"].dtype, pl.Date) and read["at"].dt.year().to_list() == [2015, 2015]
    assert ["'02/01/2015' in column 'at' are read day first" in str(one.message) for one in told] == [True] * warned
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_source(path, drop=["at"])


def test_text_in_a_known_number_column_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\noops,3\n")
    with pytest.raises(ValueError, match=r"t.csv cannot be read as a table: .*oops"):
        list(open_source(path, columns=["a", "b"]).chunks(10))


def test_what_stands_for_a_missing_number_is_none(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b,c\n1, NA,NA\n n/a,-2.5e3,x\n3,,?\n")
    read = open_source(path, columns=["a", "b"], text=["c"]).load()
    assert read.to_dict(as_series=False) == {"a": [1, None, 3], "b": [None, -2500, None], "c": ["NA", "x", "?"]}


def test_arrays(tmp_path: Path) -> None:
    rows = np.arange(20.0).reshape(10, 2)
    np.save(tmp_path / "a.npy", rows)
    np.savez(tmp_path / "a.npz", one=rows)
    np.savez(tmp_path / "b.npz", one=rows, two=rows + 1)
    for name in ("a.npy", "a.npz"):
        source = open_source(tmp_path / name)
        np.testing.assert_array_equal(source.load(), rows)
        assert [len(chunk) for chunk in source.chunks(4)] == [4, 4, 2]
    np.testing.assert_array_equal(open_source(tmp_path / "b.npz", array="two").load(), rows + 1)
    with pytest.raises(ValueError, match="several arrays \\(one, two\\): choose one with --array"):
        open_source(tmp_path / "b.npz")
    with pytest.raises(ValueError, match="no array 'tow'. Did you mean 'two'"):
        open_source(tmp_path / "b.npz", array="tow")
    with pytest.raises(ValueError, match="--array names an array of an .npz file"):
        open_source(tmp_path / "a.npy", array="one")


def test_pickled_arrays_are_not_opened(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="cannot be read"):
        open_source(tmp_path / "o.npy")


def picture(path: Path, size: tuple[int, int] = (6, 5), mode: str = "L") -> None:
    Image.new(mode, size, 100 if mode == "L" else (10, 20, 30)).save(path)


def test_folders_of_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.PNG", "c.jpg"):
        picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a picture")
    source = open_source(tmp_path)
    assert source.files == ["a.PNG", "b.png", "c.jpg"]
    assert source.load().shape == (3, 5, 6)
    assert [chunk.shape for chunk in source.chunks(2)] == [(2, 5, 6), (1, 5, 6)]
    assert open_source(tmp_path, colour=True).load().shape == (3, 5, 6, 3)
    picture(tmp_path / "d.png", mode="RGB")
    with pytest.warns(UserWarning, match=r"1 of 4 pictures are in colour, such as d\.png"):
        assert open_source(tmp_path).load().shape == (4, 5, 6, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_source(tmp_path, colour=True).load().shape == (4, 5, 6, 3)


def spoil(folder: Path, how: str) -> None:
    picture(folder / "a.png")
    if how == "sizes":
        picture(folder / "b.png", size=(7, 7))
    elif how == "truncated":
        noise = np.random.default_rng(0).integers(0, 255, (40, 40), np.uint8)
        Image.fromarray(noise).save(folder / "b.png")
        Image.fromarray(noise).save(folder / "a.png")
        (folder / "b.png").write_bytes((folder / "b.png").read_bytes()[:400])
    elif how == "text":
        (folder / "b.png").write_text("hello")
    elif how == "empty":
        (folder / "a.png").unlink()
    elif how == "deep":
        Image.fromarray(np.zeros((5, 6), np.uint16)).save(folder / "b.png")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("sizes", r"differ in size: a.png has 6×5 pixels, b.png has 7×7"),
        ("truncated", r"b.png is damaged"),
        ("text", r"b.png is damaged or not a picture"),
        ("empty", r"holds no pictures \(.png, .jpg, .jpeg\)"),
        ("deep", r"b.png has more than 8 bits"),
    ],
)
def test_bad_folders(tmp_path: Path, how: str, message: str) -> None:
    spoil(tmp_path, how)
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path).load()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.csv", None, "does not exist"),
        ("data.txt", b"1,2", "unknown type. Known: .csv"),
        ("ragged.csv", b"a,b\n1,2\n3,4,5\n", "ragged.csv cannot be read as a table"),
        ("empty.csv", b"", "empty.csv is empty"),
        ("semicolons.csv", b"a;b\n1;2\n", "one column, called 'a;b': are its cells separated by ';'"),
        ("bad.parquet", b"PAR1 nothing", "bad.parquet cannot be read as a table"),
        ("bad.npy", b"\x93NUMPY\x01\x00oops", "bad.npy cannot be read"),
        ("short.npy", b"", "short.npy cannot be read"),
        ("bad.npz", b"PK\x03\x04 but no archive", "bad.npz"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_source(path).load()


def test_benchmark_data_are_found_or_their_absence_explained(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv(benchmarks.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(benchmarks.DataMissing, match="Set OFFMANIFOLD_DATA"):
        benchmarks.data_folder()
    monkeypatch.setenv(benchmarks.VARIABLE, str(tmp_path))
    with pytest.raises(benchmarks.DataMissing, match="mnist.npz does not exist"):
        benchmarks.images("mnist")
    np.savez(tmp_path / "mnist.npz", x_test=np.zeros((2, 28, 28), np.uint8))
    assert benchmarks.images("mnist").train.shape == (0, 28, 28)
    (tmp_path / "tables").mkdir()
    with pytest.raises(benchmarks.DataMissing, match="holds no tables"):
        list(benchmarks.tables(0))
    rows, outlier = np.arange(20.0).reshape(10, 2), np.r_[np.zeros(7), np.ones(3)]
    np.savez(tmp_path / "tables" / "t.npz", X=rows, y=outlier)
    (table,) = benchmarks.tables(0)
    assert (len(table.train), len(table.normal), len(table.outliers)) == (3, 4, 3)
    assert sorted(np.concatenate(table[1:])[:, 0]) == sorted(rows[:, 0])


def test_options_that_were_meant_for_another_file(tmp_path: Path) -> None:
    rows = np.ones((4, 2))
    np.save(tmp_path / "one.npy", rows)
    np.savez(tmp_path / "one.npz", rows=rows)
    np.savez(tmp_path / "two.npz", a=rows, b=rows)
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    for name in ("one.npy", "one.npz"):
        assert open_source(tmp_path / name, array="train", drop=["id"], lenient=("array", "drop")).load().shape == (
            4,
            2,
        )
        with pytest.raises(ValueError, match="array"):
            open_source(tmp_path / name, array="train", lenient=("drop",))
    with pytest.raises(ValueError, match="has no array 'train'"):
        open_source(tmp_path / "two.npz", array="train", lenient=("array", "drop"))
    assert open_source(tmp_path / "t.csv", drop=["id", "b"], lenient=("drop",)).load().columns == ["a"]
    with pytest.raises(ValueError, match="no column 'id' to drop"):
        open_source(tmp_path / "t.csv", drop=["id"], lenient=("array",))
