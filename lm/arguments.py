"""The types of a command line's words. Each says what it takes; argparse adds the option's name.

And what is said of options that do not go with the others.
"""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from collections.abc import Callable, Iterable
from math import isfinite
from typing import TypeVar

from lm.errors import UserError, did_you_mean

NumberT = TypeVar("NumberT", int, float)


def whole(text: str) -> int:
    """A whole number."""
    return _number(int, text, "a whole number")


def positive(text: str) -> int:
    """1 or more."""
    return _number(int, text, "a whole number of 1 or more", lambda value: value >= 1)


def two_or_more(text: str) -> int:
    """2 or more."""
    return _number(int, text, "a whole number of 2 or more", lambda value: value >= 2)


def not_negative(text: str) -> int:
    """0 or more."""
    return _number(int, text, "a whole number of 0 or more", lambda value: value >= 0)


def temperature(text: str) -> float:
    """A finite number above 0."""
    return _number(
        float,
        text,
        "a number above 0 (--greedy takes the likeliest token)",
        lambda value: value > 0 and isfinite(value),
    )


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    return _number(float, text, "a number above 0 and at most 1", lambda value: 0 < value <= 1)


def steps(text: str) -> tuple[int, ...]:
    """`10-12,20` -> 10, 11, 12, 20: steps counted from 1."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        what = "a step, nor steps in rising order such as 10-12"
        begin = _number(int, first, what)
        end = _number(int, last or first, what)
        if not 1 <= begin <= end:
            raise ArgumentTypeError(f"'{part}' is not {what}")
        found += range(begin, end + 1)
    return tuple(found)


def words(text: str) -> tuple[str, ...]:
    """`a,b` as names, each once."""
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not found:
        raise ArgumentTypeError(f"'{text}' names nothing")
    return found


def lengths(text: str) -> tuple[int, ...]:
    """`512,1024` as numbers of tokens, each once."""
    return tuple(dict.fromkeys(positive(word) for word in words(text)))


def one_of(known: Iterable[str]) -> Callable[[str], str]:
    """One of some names; for another one the nearest is suggested."""
    names = tuple(known)

    def choose(text: str) -> str:
        if text not in names:
            raise ArgumentTypeError(f"'{text}' is not one of {', '.join(names)}.{did_you_mean(text, names)}")
        return text

    return choose


def refuse(chosen: Namespace, names: Iterable[str], owner: str) -> None:
    """Raises UserError for options of these names that were given, and would change nothing: they are for `owner`."""
    values = {f"--{name.replace('_', '-')}": getattr(chosen, name) for name in names}
    if given := [name for name, value in values.items() if value is not None and value is not False]:
        raise UserError(f"braid {chosen.verb}: {', '.join(given)} is for {owner}")


def _number(
    kind: Callable[[str], NumberT], text: str, what: str, holds: Callable[[NumberT], bool] | None = None
) -> NumberT:
    try:
        value = kind(text)
    except ValueError:
        raise ArgumentTypeError(f"'{text}' is not {what}") from None
    if holds is not None and not holds(value):
        raise ArgumentTypeError(f"'{text}' is not {what}")
    return value
