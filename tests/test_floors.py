"""Imports point down the floors of the house."""

from __future__ import annotations

import ast
from pathlib import Path

import offmanifold

ROOT = Path(offmanifold.__file__).parent
# From the ground up; a module may import its own floor and those below.
FLOORS = [
    {"parameters", "atomic", "memory"},
    {"networks", "probability", "sampling", "data", "measures", "calibration"},
    {"training"},
    {"detectors"},
    {"storage", "diagnosis", "report"},
    {"studies"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
# The one deliberate exception: ``detector.save`` hands itself to storage, imported when it is called.
EXCEPTIONS = {("detectors/scorer.py", "storage")}


def imports(path: Path) -> list[str]:
    """Return the first-level modules of offmanifold that a file imports, anywhere in it."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name.split(".")[1] for name in found if name.startswith("offmanifold.")]


def violations(root: Path) -> list[str]:
    bad = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if relative == Path("__init__.py"):
            continue
        own = relative.parts[0].removesuffix(".py")
        bad += [
            f"{relative} imports {name}"
            for name in imports(path)
            if name in LEVEL and LEVEL[name] > LEVEL[own] and (str(relative), name) not in EXCEPTIONS
        ]
    return bad


def test_every_module_has_a_floor() -> None:
    names = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names - {"__init__", "__pycache__", "py.typed"} == set(LEVEL)


def test_imports_point_down() -> None:
    assert violations(ROOT) == []


def test_an_import_that_points_up_is_found(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "inputs.py").write_text("def f():\n    from offmanifold.detectors import AE\n")
    assert violations(tmp_path) == ["data/inputs.py imports detectors"]


def test_importing_the_package_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, offmanifold, offmanifold.cli.main; assert 'torch' not in sys.modules; assert 'polars' not in sys.modules; offmanifold.AE; assert 'torch' in sys.modules"  # noqa: E501
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_resolves() -> None:
    for name in offmanifold.__all__:
        assert getattr(offmanifold, name) is not None
    assert set(dir(offmanifold)) == set(offmanifold.__all__)
