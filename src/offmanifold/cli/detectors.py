"""``offmanifold detectors``."""

from __future__ import annotations

import inspect as introspection
import re
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
        rows = [[key, _summary(cls)] for key, cls in DETECTORS.items()]
        common.table(None, ["name", "what it does"], rows)
        common.papers_in(" ".join(summary for _, summary in rows))
        typer.echo("\nA detector's parameters:  offmanifold detectors NAME")
    else:
        cls, by_name = DETECTORS[name], {own.__name__: own for own in DETECTORS.values()}
        summary = _plain(_sections(cls)["Summary"])
        common.paragraphs(summary)
        typer.echo("\nSet a parameter with  offmanifold fit --set KEY=VALUE\n")
        values = defaults(cls)
        rows = [[key, repr(values[key]), _meaning(cls, key, by_name)] for key in _documented(cls)]
        common.table(None, ["parameter", "default", "meaning"], rows)
        common.papers_in(" ".join([summary, *(meaning for _, _, meaning in rows)]))


def _summary(cls: type) -> str:
    return (introspection.getdoc(cls) or "").splitlines()[0]


def defaults(cls: Any) -> dict[str, Any]:
    defaults: dict[str, Any] = cls().get_params()
    return defaults


# --- numpydoc, as it reads on a terminal ---------------------------------------------------------------


def _sections(cls: type) -> dict[str, str]:
    """Split a class's documentation at its underlined headings; what comes before them is the summary."""
    found = re.split(r"^(\S.*)\n-{3,}\n", introspection.getdoc(cls) or "", flags=re.MULTILINE)
    return {heading.strip(): text.strip() for heading, text in zip(["Summary", *found[1::2]], found[::2], strict=True)}


def _documented(cls: type) -> dict[str, tuple[str, str]]:
    """Return (kind, description) of each parameter."""
    parts = re.split(r"^(?=\S)", _sections(cls).get("Parameters", ""), flags=re.MULTILINE)
    entries: dict[str, tuple[str, str]] = {}
    for part in filter(None, parts):
        head, _, text = part.partition("\n")
        names, _, kind = head.partition(" : ")
        entries |= {name.strip(): (kind, text.strip()) for name in names.split(",")}
    return entries


def _meaning(cls: type, name: str, by_name: dict[str, type]) -> str:
    """Say what a parameter is; where the documentation points to another detector's, in that one's words."""
    kind, text = _documented(cls)[name]
    pointer = re.match(
        r"As (?:for|in) :class:`~?(?:[\w.]*\.)?(\w+)`(?:, but (?P<but>.*)|[.:;]\s*(?P<more>.*))?", text, re.DOTALL
    )
    if pointer and pointer[1] in by_name and name in _documented(by_name[pointer[1]]):
        here = f"Here {pointer['but']}" if pointer["but"] else pointer["more"] or ""
        return f"{_meaning(by_name[pointer[1]], name, by_name)} {_plain(here)}".strip()
    return _plain(f"{kind}. {text}" if kind else text)


def _plain(text: str) -> str:
    """Take the markup out of a text, and the line breaks out of its paragraphs."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", text).replace("``", "")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))
