"""The checks of arguments at the border, worded once: what was expected, what came, what to do."""

import difflib
import math
import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from xpnet.errors import ArgumentError, UnknownArgumentError


def nearest(word: str, words: Iterable[str]) -> str:
    """Return ``' Did you mean "relu"?'`` for the nearest of `words`, or ``""`` when none is near."""
    lowered = {other.lower(): other for other in words}
    close = difflib.get_close_matches(word.lower(), lowered, n=1)
    return f' Did you mean "{lowered[close[0]]}"?' if close else ""


def choice(name: str, value: Any, options: Sequence[str], *, or_else: str = "") -> str:
    """Return `value` when it is one of `options`.

    Raises
    ------
    ArgumentError
        It is not; the message lists the options and the nearest one.
    """
    if isinstance(value, str) and value in options:
        return value
    listed = ", ".join(repr(option) for option in options) + (f", or {or_else}" if or_else else "")
    hint = nearest(value, options) if isinstance(value, str) else ""
    raise ArgumentError(f"{name} must be one of {listed}; it is {value!r}.{hint}")


def whole(name: str, value: Any, *, low: int) -> int:
    """Return `value` as an int that is at least `low`; NumPy's integers count, True does not."""
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise ArgumentError(f"{name} must be a whole number, {low} or more; it is {value!r}.")
    if number < low:
        raise ArgumentError(f"{name} must be {low} or more; it is {number}.")
    return number


def real(name: str, value: Any, *, above: float = -math.inf, low: float = -math.inf, below: float = math.inf) -> float:
    """Return `value` as a finite float with ``above < value``, ``low <= value`` and ``value < below``."""
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    except OverflowError:  # an int of more than 308 digits, of which Python may not even print all
        number = value = math.inf
    bounds = [
        f"more than {above:g}" if above > -math.inf else "",
        f"at least {low:g}" if low > -math.inf else "",
        f"less than {below:g}" if below < math.inf else "",
    ]
    if not (math.isfinite(number) and above < number and low <= number < below):
        bound = " and ".join(filter(None, bounds))
        raise ArgumentError(f"{name} must be a finite number{' ' * bool(bound)}{bound}; it is {value!r}.")
    return number


def true_or_false(name: str, value: Any) -> bool:
    """Return `value` as a bool; NumPy's bools count, 0 and 1 do not."""
    if not isinstance(value, bool | np.bool_):
        raise ArgumentError(f"{name} must be True or False; it is {value!r}.")
    return bool(value)


def file_path(name: str, value: Any) -> str:
    """Return `value` as a path, which a string or a `pathlib.Path` is."""
    if not isinstance(value, str | os.PathLike) or not isinstance(path := os.fspath(value), str) or not path:
        raise ArgumentError(f"{name} must be the path of a file, a string or a pathlib.Path; it is {value!r}.")
    try:
        nameable = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        nameable = False
    if not nameable:
        raise ArgumentError(f"{name} must be a path that the file system can hold; it is {path!r}. Pass another.")
    return path


def refuse_unknown(function: str, given: Mapping[str, Any], known: Sequence[str], foreign: Mapping[str, str]) -> None:
    """Raise for keyword arguments that `function` does not have.

    Parameters
    ----------
    given : mapping
        The unknown arguments.
    known : sequence of str
        The names that it has.
    foreign : mapping of str to str
        Names that people bring from other libraries, with the advice that mends them.

    Raises
    ------
    UnknownArgumentError
        `given` is not empty; the message gives the right name.
    """
    for name in given:
        advice = foreign.get(name, "")
        hint = f"; {advice}" if advice else "." + (nearest(name, known) or f" help(xpnet.{function}) lists them.")
        raise UnknownArgumentError(f"{function}() has no argument {name!r}{hint}")
