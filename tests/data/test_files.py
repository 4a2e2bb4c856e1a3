"""Files and folders on disk."""

from __future__ import annotations

import io
import warnings
import zipfile
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
    with pytest.raises(ValueError, match=r"""t.csv has "oops" in column 'a', which holds numbers. Mend the cells"""):
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
        ("ragged.csv", b"a,b\n1,2\n3,4,5\n", "ragged.csv has a row with more cells than its first line"),
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


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("name", ["data[1]", "data*", "data?"])
def test_file_names_are_no_patterns(tmp_path: Path, name: str, suffix: str) -> None:
    for stem, values in {"data1": [1], name: [2, 3]}.items():
        frame = pl.DataFrame({"a": values, "at": [f"2024-01-0{value}" for value in values]})
        frame.write_csv(tmp_path / f"{stem}{suffix}") if suffix == ".csv" else frame.write_parquet(
            tmp_path / f"{stem}{suffix}"
        )
    path = tmp_path / f"{name}{suffix}"
    assert open_source(path).load()["a"].to_list() == [2, 3]
    assert pl.concat(open_source(path, columns=["a"]).chunks(1))["a"].to_list() == [2, 3]
    assert read_column(path, "a").tolist() == [2, 3]


@pytest.mark.parametrize("day", ["01/02/15", "15-02-01", "1.2.15"])
def test_years_of_two_digits_are_refused(tmp_path: Path, day: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(f"at,x\n{day},1\n{day},2\n")
    with pytest.raises(ValueError, match=rf"d.csv: dates such as '{day}' in column 'at' have a year of two digits"):
        open_source(path)
    for source in (open_source(path, drop=["at"]), open_source(path, text=["at"])):
        assert source.load()["x"].to_list() == [1, 2]
    path.write_text("at,x\n0001-01-01,1\n2024-01-01,2\n")  # what some programs write for none
    assert open_source(path).load()["at"].dt.year().to_list() == [1, 2024]


def test_other_formats_are_not_opened_whatever_their_names(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 5\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(ValueError, match=r"x.png is damaged or not a picture"):
        open_source(tmp_path)


def transparent(mode: str, alpha: int) -> Image.Image:
    """Return a grey picture with one pixel of that alpha, as modes with and without a channel for it have it."""
    grey = np.full((5, 6), 90, np.uint8)
    grey[2, 3] = 91
    if mode == "P":
        image = Image.fromarray(np.uint8(grey == 91), "P")
        image.putpalette([90] * 3 + [91] * 3)
        image.info["transparency"] = bytes([255, alpha])
        return image
    if mode in ("L", "RGB"):
        image = Image.fromarray(grey).convert(mode)
        if alpha < 255:
            image.info["transparency"] = 91 if mode == "L" else (91, 91, 91)
        return image
    image = Image.fromarray(grey).convert(mode)
    image.putalpha(Image.fromarray(np.where(grey == 91, alpha, 255).astype(np.uint8)))
    return image


def save_with_transparency(image: Image.Image, path: Path) -> None:
    given = image.info.get("transparency")
    image.save(path, **({} if given is None else {"transparency": given}))


@pytest.mark.parametrize("mode", ["L", "RGB", "P", "LA", "RGBA"])
def test_transparent_pictures_are_refused_and_opaque_ones_are_not(tmp_path: Path, mode: str) -> None:
    save_with_transparency(transparent(mode, 255), tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = open_source(tmp_path).load()
    assert pixels.shape == ((1, 5, 6) if mode in ("L", "P", "LA") else (1, 5, 6, 3))
    assert pixels[0, 0, 0].max() == 90 and pixels[0, 2, 3].max() == 91
    for alpha in (0, 254):
        save_with_transparency(transparent(mode, alpha), tmp_path / "a.png")
        with pytest.raises(ValueError, match=r"a.png is transparent in part, .* Draw it on one first"):
            open_source(tmp_path).load()


def test_a_palette_of_colours_is_colour(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((5, 6), np.uint8), "P")
    image.putpalette([10, 20, 30])
    image.save(tmp_path / "a.png")
    assert open_source(tmp_path).load()[0, 0, 0].tolist() == [10, 20, 30]


def test_an_array_larger_than_memory_is_not_unpacked(tmp_path: Path) -> None:
    """A header that promises 8 PB, in a file of a few bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**6)})
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("rows.npy", header.getvalue())
    with pytest.raises(
        ValueError, match=r"x.npz: the array 'rows' takes .* GiB unpacked; this machine has .* as an .npy"
    ):
        open_source(tmp_path / "x.npz")


def test_the_labels_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone.csv does not exist"):
        read_column(tmp_path / "gone.csv", "y")
    (tmp_path / "t.csv").write_text(f"y\n{10**20}\n1\n")
    assert read_column(tmp_path / "t.csv", "y").tolist() == [1e20, 1]


def test_benchmark_data_are_found_or_their_absence_explained(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv(benchmarks.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(benchmarks.DataMissing, match="Set OFFMANIFOLD_DATA"):
        benchmarks.data_folder()
    monkeypatch.setenv(benchmarks.VARIABLE, str(tmp_path))
    with pytest.raises(benchmarks.DataMissing, match="mnist.npz does not exist"):
        benchmarks.images("mnist")
    np.savez(tmp_path / "mnist.npz", x_test=np.zeros((2, 28, 28), np.uint8))
    assert benchmarks.images("mnist").train.shape == (0, 28, 28)
    np.savez(tmp_path / "tinyimagenet32.npz", x_train=np.zeros((2, 32, 32, 3), np.uint8))
    assert [len(part) for part in benchmarks.images("tinyimagenet32")] == [2, 0, 0, 0]
    np.savez(tmp_path / "svhn.npz", X=np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(ValueError, match=r"svhn\.npz holds neither x_train nor x_test, but X\."):
        benchmarks.images("svhn")
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


def test_tables_in_other_encodings_or_with_odd_line_ends_are_refused(tmp_path: Path) -> None:
    (tmp_path / "wide.csv").write_bytes("a,b\n1,2\n".encode("utf-16"))
    (tmp_path / "ends.csv").write_bytes(b"a,b\r\r\n1,2\r\r\n3,4\r\r\n")
    (tmp_path / "latin.csv").write_bytes("köln,b\n1,2\n".encode("latin-1"))
    (tmp_path / "cells.csv").write_bytes("a,b\nköln,2\n".encode("latin-1"))
    (tmp_path / "more.csv").write_text("a,b\n1,5,2\n")
    with pytest.raises(ValueError, match="more.csv has a row with more cells than its first line has names"):
        open_source(tmp_path / "more.csv").load()
    found = "is not UTF-8 text"
    for name, what in (("wide", found), ("ends", "has lines with odd ends"), ("latin", found), ("cells", found)):
        with pytest.raises(ValueError, match=f"{name}.csv {what}. Save it as CSV in UTF-8"):
            open_source(tmp_path / f"{name}.csv").load()


def test_quotes_within_a_columns_name(tmp_path: Path) -> None:
    frame = pl.DataFrame({'w "kg"': [1.0, 2.5], 'on "day"': ["2024-12-31", "2025-01-02"], '"': ["a", "b"]})
    frame.write_csv(tmp_path / "t.csv")
    opened = open_source(tmp_path / "t.csv", columns=['w "kg"'], text=['"'])
    assert opened.columns == tuple(frame.columns)
    assert opened.load().equals(frame.with_columns(pl.col('on "day"').str.to_date()))
    assert read_column(tmp_path / "t.csv", 'w "kg"').tolist() == [1.0, 2.5]


def test_labels_that_stand_for_missing_ones_are_none(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("x,y,z\n1,0,a\n2,NA,?\n3,1,b\n4,,NA\n")
    np.testing.assert_array_equal(read_column(tmp_path / "t.csv", "y"), [0, np.nan, 1, np.nan])
    assert read_column(tmp_path / "t.csv", "z").tolist() == ["a", None, "b", None]
    assert read_column(tmp_path / "t.csv", "x").tolist() == [1, 2, 3, 4]


def test_pictures_lie_as_viewers_show_them(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    for number, (orientation, stored) in enumerate([(1, pixels), (3, pixels[::-1, ::-1]), (6, np.rot90(pixels))]):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / f"{number}.png", exif=exif)
    loaded = open_source(tmp_path).load()
    assert loaded.shape == (3, 3, 4) and (loaded == pixels).all()
