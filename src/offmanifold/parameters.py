"""Checks of users' arguments: each error names the argument, what came, and what is expected."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


class InvalidParameter(ValueError, TypeError):
    """A parameter's value cannot be, whatever the data; either kind of error, as scikit-learn's own."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` where a known name is close, else the list of known names."""
    known = sorted(known)
    close = [own for own in known if own.lower() == name.lower()] or difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(known)}."


def choice(argument: str, value: Any, options: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``options``."""
    options = tuple(options)
    if not isinstance(value, str):
        raise InvalidParameter(f"{argument} must be one of {', '.join(map(repr, options))}; got {value!r}.")
    if value not in options:
        raise InvalidParameter(f"{argument}={value!r} is unknown.{did_you_mean(value, options)}")
    return value


def integer(
    argument: str, value: Any, *, minimum: int = 1, maximum: int | None = None, words: Iterable[str] = ()
) -> int:
    """Return ``value`` as an int within bounds; an error names the ``words`` that are allowed beside it."""
    most = "" if maximum is None else f" and at most {maximum}"
    wanted = f"{argument} must be an integer of at least {minimum}{most}{_or(words)}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidParameter(f"{wanted}; got {value!r}.")
    found = int(value)
    if found < minimum or (maximum is not None and found > maximum):
        raise InvalidParameter(f"{wanted}; got {found}.")
    return found


def real(
    argument: str,
    value: Any,
    *,
    above: float | None = None,
    minimum: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
    words: Iterable[str] = (),
) -> float:
    """Return ``value`` as a finite float within the bounds (``above`` and ``below`` are exclusive).

    An error names the ``words`` that are allowed beside numbers.
    """
    wanted = "a finite number"
    for word, bound in (("above", above), ("at least", minimum), ("below", below), ("at most", maximum)):
        if bound is not None:
            wanted += f", {word} {bound:g}"
    wanted += _or(words)
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidParameter(f"{argument} must be {wanted}; got {value!r}.")
    try:
        number = float(value)
    except OverflowError:  # of a whole number too large
        number = math.inf
    fits = (
        number - number == 0
        and (above is None or number > above)
        and (minimum is None or number >= minimum)
        and (below is None or number < below)
        and (maximum is None or number <= maximum)
    )
    if not fits:
        raise InvalidParameter(f"{argument} must be {wanted}; got {value!r}.")
    return number


def random_state(value: Any) -> np.random.RandomState:
    """Return what ``random_state`` stands for: None, an integer or a RandomState."""
    from sklearn.utils import check_random_state

    try:
        random: np.random.RandomState = check_random_state(value)
    except ValueError as error:
        raise InvalidParameter(
            f"random_state must be an integer from 0 to 4294967295, a numpy.random.RandomState or None; got {value!r}."
        ) from error
    return random


def _or(words: Iterable[str]) -> str:
    return "".join(f" or {word!r}" for word in words)


def sizes(argument: str, value: Any) -> tuple[int, ...]:
    """Return ``value`` (one integer or a sequence of them) as a tuple of positive ints."""
    if isinstance(value, numbers.Integral):
        value = (value,)
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise InvalidParameter(f"{argument} must be a positive integer or a sequence of them; got {value!r}.")
    return tuple(integer(f"{argument}[{i}]", size) for i, size in enumerate(value))
