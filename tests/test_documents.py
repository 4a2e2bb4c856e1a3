"""What README, CONTRIBUTING and the examples say can be done, done."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import QUICK
from PIL import Image
from typer.testing import CliRunner

import offmanifold
from offmanifold.cli.common import PAPERS
from offmanifold.cli.main import app
from offmanifold.detectors import DETECTORS, OutlierDetector

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)


def test_the_detector_of_the_walk_through_works(plane: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = blocks("CONTRIBUTING.md", "python")
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    cls = namespace["LinearAE"]
    normal, odd = plane
    detector = cls(**(QUICK | {"hidden": (), "steps": 400})).fit(normal)
    assert offmanifold.auroc(detector.score_samples(normal), detector.score_samples(odd)).value > 0.99
    monkeypatch.setitem(DETECTORS, cls.key, cls)
    detector.save(tmp_path / "m.safetensors")
    loaded = offmanifold.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(loaded.score_samples(odd), detector.score_samples(odd))
    gappy = np.where(np.arange(5) == 2, np.nan, normal)  # of which it knows nothing
    assert 0.2 < (detector.p_values(gappy) <= 0.5).mean() < 0.8
    assert np.isfinite(detector.reconstruct(gappy)).all() and np.isfinite(detector.explain(gappy[:3]).score).all()


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "AUROC: 0.9" in done.stdout


def test_readmes_python_runs(tmp_path: Path, plane: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    normal, odd = plane
    namespace = {"X_normal": normal, "X_new": odd, "X_train": normal[:300], "X_held_out": normal[300:]}
    namespace |= {"X_odd": odd, "y": np.where(np.arange(len(normal)) % 5, -1, normal[:, 0] > 0)}
    for code in blocks("README.md", "python"):
        exec(code, namespace)
    assert namespace["detector"].settings_["latent_dim"] == namespace["found"].parameters["latent_dim"]
    assert (tmp_path / "model.safetensors").exists()


def test_the_page_on_tables_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("docs/tables.md", "python")
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    assert (namespace["detector"].p_values(namespace["odd"]) < 0.05).all()
    assert "town" in capsys.readouterr().out


def anchors(document: Path) -> set[str]:
    """Return what GitHub calls a page's headings in links."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    links = re.findall(r"\]\(((?!https?:)[^)\s]+)\)", text)
    for name, _, anchor in (link.partition("#") for link in links):
        target = (page.parent / name) if name else page
        assert target.exists(), name
        assert not anchor or anchor in anchors(target), f"{name}#{anchor}"
    for name in re.findall(r"`(docs/[^`]+)`", text):
        assert (ROOT / name).exists(), name


def test_readmes_commands_run_in_their_order(
    tmp_path: Path, plane: Any, digits: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each as it stands but for fewer steps; the model of one is what the next ones are given."""
    monkeypatch.chdir(tmp_path)
    normal, odd = plane
    names = list("abcde")
    for name, rows in {"normal": normal[:300], "new": odd, "held-out": normal[300:], "odd": odd}.items():
        pl.DataFrame(rows, schema=names, orient="row").write_csv(f"{name}.csv")
    species = [("one", "two", None)[i % 3] for i in range(300)]
    pl.DataFrame(normal[:300], schema=names, orient="row").with_columns(species=pl.Series(species)).write_csv(
        "partly-labelled.csv"
    )
    pixels, labels = (digits[0] * 255).astype(np.uint8), digits[1]
    noise = np.random.default_rng(0).integers(0, 255, (60, 8, 8), dtype=np.uint8)
    zeros, ones = pixels[labels == 0], pixels[labels == 1]
    for name, images in {"pictures": zeros[:100], "new_pictures": ones, "held-out": zeros[100:], "other": ones}.items():
        folder_of_pictures(tmp_path / name, images)
    folder_of_pictures(tmp_path / "noise", noise)
    np.savez("images.npz", zeros)
    few = {"--capacity auto": "--set steps=60", "--detector nae": "--set steps=2 --set pretraining_steps=2"}
    lines = [
        line for block in blocks("README.md", "sh") for line in block.splitlines() if line.startswith("offmanifold")
    ]
    assert len(lines) >= 15
    for line in lines:
        own = " ".join(more for said, more in few.items() if said in line)
        done = CliRunner().invoke(app, shlex.split(f"{line.partition('#')[0]} {own}")[1:])
        assert done.exit_code == 0, f"{line}\n{done.output}"


def folder_of_pictures(folder: Path, images: np.ndarray) -> None:
    folder.mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03}.png")


@pytest.mark.parametrize("page", ["README.md", "docs/studies.md"])
def test_the_papers_names_are_the_commands(page: str) -> None:
    said = dict(re.findall(r"^- (P\d): (.*)$", (ROOT / page).read_text(), flags=re.MULTILINE))
    assert {label: title.replace("*", "") for label, title in said.items()} == PAPERS


def test_the_example_of_chains() -> None:
    import doctest

    from offmanifold.sampling import chain

    found = doctest.testmod(chain)
    assert found.attempted >= 5 and found.failed == 0


def test_docstring_examples(detector_class: type[OutlierDetector]) -> None:
    import doctest

    found = doctest.testmod(sys.modules[detector_class.__module__])
    assert found.attempted >= 5 and found.failed == 0
