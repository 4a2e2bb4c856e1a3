"""The report is one page that loads nothing, runs nothing, escapes what users wrote, and fits the screen."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import quick

from offmanifold import AE, VAE, NegativeVAE, diagnose
from offmanifold.cli.main import main
from offmanifold.cli.report import fit_again
from offmanifold.report.page import write_report
from offmanifold.report.pictures import explained, write_sheet

HOSTILE = "<script>alert(1)</script>"


class Page(HTMLParser):
    """What a page holds: tags with attributes, and the text of its titles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.charts = 0
        self.titled = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))
        self.charts += tag == "svg"
        self.open.append(tag)

    def handle_data(self, data: str) -> None:
        self.titled += bool(self.open[-2:] == ["svg", "title"] and data.strip())

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory, plane: Any, digits: Any) -> dict[str, Path]:
    """A table with a hostile column, images, colour images, and a detector without any rows."""
    folder = tmp_path_factory.mktemp("pages")
    names = [HOSTILE, 'quote"&', "a_very_long_column_name_that_does_not_fit_anywhere_at_all", "d", "e"]
    table = pl.DataFrame(plane[0], schema=names, orient="row")
    odd = pl.DataFrame(plane[1][:30], schema=names, orient="row")
    detector = VAE(**quick(VAE)).fit(table)
    write_report(detector, diagnose(detector, table), folder / "table.html", title=HOSTILE, X=odd, normal=table)
    images = (digits[0][:300] * 255).astype(np.uint8)
    detector = AE(**quick(AE)).fit(images)
    odd_images = 255 - images[:10]
    write_report(detector, diagnose(detector), folder / "images.html", X=odd_images, names=["<b>.png"] * 10)
    colour = np.random.default_rng(0).integers(0, 255, (60, 8, 8, 3), dtype=np.uint8)
    detector = AE(**quick(AE), store_rows=False).fit(colour)
    write_report(detector, diagnose(detector), folder / "colour.html", X=colour[:4], facts={"seed": HOSTILE})
    return {path.stem: path for path in folder.glob("*.html")}


def test_a_page_loads_nothing_and_runs_nothing(pages: dict[str, Path]) -> None:
    assert set(pages) == {"table", "images", "colour"}
    for path in pages.values():
        text = path.read_text()
        page = Page(text)
        tags = [tag for tag, _ in page.tags]
        assert "script" not in tags and "link" not in tags and "iframe" not in tags and "b" not in tags
        assert HOSTILE not in text and len(text) < 5e6
        assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:image/png;base64,)", text)
        assert "url(" not in text and "@import" not in text
        policies = [
            values["content"] for tag, values in page.tags if values.get("http-equiv") == "Content-Security-Policy"
        ]
        assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
        assert all(values.get("alt") for tag, values in page.tags if tag == "img")
        assert not any(name.startswith("on") for _, values in page.tags for name in values)
        assert page.charts == page.titled > 0


def test_a_page_says_what_was_found(pages: dict[str, Path]) -> None:
    table, images, colour = (pages[name].read_text() for name in ("table", "images", "colour"))
    assert "&lt;script&gt;alert(1)" in table and "quote&#34;&amp;" in table
    assert "rows do not belong" in table and "Synthetic outliers by family" in table
    assert table.count('class="row"') == 8
    assert images.count('class="row"') == 8 and images.count("<img") >= 3 * 8 and "&lt;b&gt;.png" in images
    for page in (table, images):
        assert "These rows beside those of training" in page and "farther from the training rows" in page
    assert "– more than chance" in table and re.search(r">patch \d, \d of 4 × 4<", images)
    assert "normal rows were looked at" in table and "calibration rows of the model" in images
    assert "not examined" in colour and "<code>--normal</code>" in colour and "Synthetic outliers" not in colour


def test_a_diagnosis_of_some_checks_will_do(tmp_path: Path, plane: Any) -> None:
    detector = AE(**quick(AE)).fit(plane[0])
    write_report(detector, diagnose(detector, plane[0], checks=["drift"]), tmp_path / "page.html", X=plane[0] + 1)
    text = (tmp_path / "page.html").read_text()
    assert "Synthetic outliers by family" not in text
    assert "farther from the training rows&#39; than chance explains. Outliers among them, or" in text


def test_names_of_pictures_are_no_formulas(tmp_path: Path, digits: Any) -> None:
    detector = AE(**quick(AE)).fit(digits[0][:200])
    pictures = explained(detector, detector.explain(digits[0][:2]))
    write_sheet(tmp_path / "why.png", pictures, ["cost $5_$10.png", "a$_$.png"])
    assert (tmp_path / "why.png").stat().st_size > 1000


def test_what_a_fit_was_given_is_in_its_command() -> None:
    parameters = NegativeVAE(random_state=3).get_params()
    header = {
        "detector": "negative-vae", "parameters": parameters, "settings": {"negatives": {"given": 1.0}},
        "input": {"kind": "table", "ignored": ["name"]},
    }  # fmt: skip
    assert fit_again(header) == (
        "offmanifold fit DATA --detector negative-vae --set random_state=3 --negatives NEGATIVES --drop name"
        "  # and --columns as it was"
    )


def test_the_command(tmp_path: Path, plane: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    np.save(tmp_path / "normal.npy", plane[0])
    np.save(tmp_path / "odd.npy", plane[1])
    AE(**quick(AE)).fit(plane[0]).save(tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    command = ["offmanifold", "report", "model.safetensors", "odd.npy", "--normal", "normal.npy", "-o", "page.html"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code in (0, None)
    assert "Wrote page.html" in capsys.readouterr().out
    text = (tmp_path / "page.html").read_text()
    assert "offmanifold report model.safetensors odd.npy --normal normal.npy" in text and "column 0" in text
    assert "offmanifold fit DATA --detector ae " in text and "hidden=[32]" in text and "--set random_state=0" in text
    with pytest.raises(SystemExit) as done:
        main()
    assert done.value.code == 2 and "--overwrite" in capsys.readouterr().err


MEASURE = """<iframe src="{page}" style="width:{width}px;height:900px;border:0"></iframe><pre id="told"></pre>
<script>onload = () => {{ const page = document.querySelector("iframe").contentDocument;
const wide = page.documentElement.scrollWidth, pictures = [...page.images];
const shown = pictures.filter(picture => picture.complete && picture.naturalWidth).length;
const outside = [...page.querySelectorAll("td, p, h1, h2, dd, figure")].filter(
  e => e.getBoundingClientRect().right > {width} + 1).length;
const channels = colour => colour.match(/[\\d.]+/g).map(Number);
const linear = c => c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4, weights = [.2126, .7152, .0722];
const light = colour => weights.reduce((sum, weight, i) => sum + weight * linear(channels(colour)[i] / 255), 0);
const behind = e => {{ for (; e; e = e.parentElement) {{
  const colour = getComputedStyle(e).backgroundColor;
  if (channels(colour)[3] !== 0) return colour; }} return "rgb(255, 255, 255)"; }};
const contrasts = [...page.querySelectorAll("p, h1, h2, td, th, dd, dt, figcaption, code, strong, text")].map(e => {{
  const style = getComputedStyle(e), pair = [light(e.tagName == "text" ? style.fill : style.color), light(behind(e))];
  return (Math.max(...pair) + .05) / (Math.min(...pair) + .05); }});
const dark = light(getComputedStyle(page.body).backgroundColor) < .5;
told.textContent = `wide ${{wide}} pictures ${{pictures.length}} shown ${{shown}} outside ${{outside}} `
  + `dark ${{dark}} contrast ${{Math.min(...contrasts).toFixed(2)}}`; }}</script>"""


@pytest.mark.parametrize(("width", "theme"), [(360, "light"), (1600, "light"), (1600, "dark")])
@pytest.mark.parametrize("name", ["table", "images", "colour"])
def test_a_page_fits_the_screen_and_can_be_read(
    name: str, width: int, theme: str, pages: dict[str, Path], tmp_path: Path
) -> None:
    """Nothing leaves the screen, every picture is there, and all text has the contrast that WCAG's level AA asks."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium on this machine")
    (tmp_path / "measure.html").write_text(MEASURE.format(page=pages[name].as_uri(), width=width))
    done = subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--dump-dom",
         "--enable-logging=stderr", f"--blink-settings=preferredColorScheme={['dark', 'light'].index(theme)}",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=5000", "--window-size=1700,1000",
         (tmp_path / "measure.html").as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    found = re.search(
        r"wide (\d+) pictures (\d+) shown (\d+) outside (\d+) dark (\w+) contrast ([\d.]+)</pre>", done.stdout
    )
    assert found, done.stdout + done.stderr
    wide, pictures, shown, outside = map(int, found.groups()[:4])
    assert found[5] == ("true" if theme == "dark" else "false") and float(found[6]) >= 4.5
    assert wide <= width and outside == 0
    assert pictures == shown == [tag for tag, _ in Page(pages[name].read_text()).tags].count("img")
    assert "CONSOLE" not in done.stderr
