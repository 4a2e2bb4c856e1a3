"""``offmanifold detectors``."""

from __future__ import annotations

import inspect as introspection
from typing import Annotated, Any

import typer

from offmanifold.cli import common
from offmanifold.parameters import did_you_mean


def detectors(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show one detector's parameters.")] = None,
    as_json: common.JsonOption = False,
) -> None:
    """List the detectors, or one detector's parameters with their defaults.

    [bold]Examples[/bold]

      offmanifold detectors

      offmanifold detectors vae
    """
    from offmanifold.detectors import DETECTORS

    if name is not None and name not in DETECTORS:
        raise common.UsageError(f"Unknown detector {name!r}.{did_you_mean(name, DETECTORS)}")
    if as_json:
        shown = DETECTORS if name is None else {name: DETECTORS[name]}
        common.print_json({key: {"summary": _summary(cls), "parameters": defaults(cls)} for key, cls in shown.items()})
    elif name is None:
        common.table(None, ["name", "what it does"], [[key, _summary(cls)] for key, cls in DETECTORS.items()])
        typer.echo("\nA detector's parameters:  offmanifold detectors NAME")
    else:
        typer.echo(introspection.getdoc(DETECTORS[name]))
        rows = [[key, repr(value)] for key, value in defaults(DETECTORS[name]).items()]
        common.table("\nDefaults (set with --set KEY=VALUE)", ["parameter", "default"], rows)


def _summary(cls: type) -> str:
    return (introspection.getdoc(cls) or "").splitlines()[0]


def defaults(cls: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = cls().get_params()
    return defaults
