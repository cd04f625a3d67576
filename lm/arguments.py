"""Words of a command line: the types of options, and what argparse leaves over.

Left over are overrides behind an option, and options that do not exist.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence

from lm.errors import UserError, did_you_mean

_OPTION = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")


def above_zero(text: str) -> float:
    """A finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0; --greedy takes the likeliest token")
    return value


def share(text: str) -> float:
    """A number above 0 and at most 1."""
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def positive(text: str) -> int:
    """1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def not_negative(text: str) -> int:
    """0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


def steps(text: str) -> tuple[int, ...]:
    """`10-12,20` -> 10, 11, 12, 20: steps counted from 1."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        begin, end = int(first), int(last or first)
        if not 1 <= begin <= end:
            raise argparse.ArgumentTypeError(f"{part} is no step, nor steps in rising order such as 10-12")
        found += range(begin, end + 1)
    return tuple(found)


def overrides_of(words: Sequence[str], verb: str, usage: str) -> list[str]:
    """The `key=value` words of a verb that takes a run file, in order.

    usage: argparse's usage line, which lists the verb's options.

    Raises:
        UserError: an option that the verb does not have, or an override written with dashes.
    """
    for place, word in enumerate(words):
        if word.startswith("-"):
            _refuse_option(word, words[place + 1 : place + 2], verb, usage)
    return list(words)


def refuse(words: Sequence[str], verb: str, usage: str) -> None:
    """Raises UserError for words that a verb without overrides does not expect; there may be none."""
    for word in words:
        if word.startswith("-"):
            _refuse_option(word, (), verb, usage)
        raise UserError(f"braid {verb} does not expect '{word}'. {_one_line(usage)}")


def _refuse_option(word: str, following: Sequence[str], verb: str, usage: str) -> None:
    key, equals, value = word.lstrip("-").partition("=")
    if "." in key:
        if not equals:
            value = next((other for other in following if not other.startswith("-") and "=" not in other), "VALUE")
        raise UserError(f"braid {verb}: {word} is no option: write {key}={value} without dashes")
    options = _OPTION.findall(usage)
    nearest = did_you_mean(word.partition("=")[0], options)
    raise UserError(f"braid {verb} has no option '{word}'.{nearest} Options: {', '.join(options)}")


def _one_line(usage: str) -> str:
    return " ".join(usage.split())
