"""Words, names and numbers to hide: lists of the package wonderwords, as RULER and LongChat use them."""

from __future__ import annotations

import random
import re
import string
import uuid
from collections.abc import Callable, Container
from functools import cache
from importlib.resources import files

from lm.data.fingerprint import content_digest

KINDS = ("noun", "adjective", "verb")
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
"""Landmark attention's filler, which RULER has as its noise."""
LEAST_NUMBER, GREATEST_NUMBER = 10**6, 10**7 - 1


@cache
def word_list(kind: str) -> tuple[str, ...]:
    """The list `noun`, `adjective` or `verb`, in its order, without its duplicates."""
    text = (files("wonderwords") / "assets" / f"{kind}list.txt").read_text(encoding="utf-8")
    return tuple(dict.fromkeys(line.rstrip() for line in text.splitlines()))


@cache
def lists_digest() -> str:
    """Names the words of all three lists, which another version of wonderwords may change."""
    return content_digest("\n".join(word_list(kind)).encode() for kind in KINDS)


@cache
def every_word() -> tuple[str, ...]:
    """All three lists as one, sorted."""
    return tuple(sorted({word for kind in KINDS for word in word_list(kind)}))


@cache
def plain_words(kind: str) -> tuple[str, ...]:
    """Words of 3 to 7 small letters that are in this list alone: short in any tokenizer, and of one kind."""
    others = {word for other in KINDS if other != kind for word in word_list(other)}
    return tuple(word for word in word_list(kind) if re.fullmatch("[a-z]{3,7}", word) and word not in others)


def compound(rng: random.Random) -> str:
    """An adjective and a noun, hyphenated: 6 million of them."""
    return f"{rng.choice(word_list('adjective'))}-{rng.choice(word_list('noun'))}"


def number(rng: random.Random) -> str:
    """Seven digits, the first not zero."""
    return str(rng.randint(LEAST_NUMBER, GREATEST_NUMBER))


def unique_id(rng: random.Random) -> str:
    """A version 4 UUID."""
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def letters(rng: random.Random, length: int, alphabet: str = string.ascii_lowercase) -> str:
    """A random string."""
    return "".join(rng.choices(alphabet, k=length))


def distinct(draw: Callable[[], str], count: int, taken: Container[str] = ()) -> list[str]:
    """Different draws, none of them taken: a key that occurs twice would have two answers."""
    found: dict[str, None] = {}
    while len(found) < count:
        drawn = draw()
        if drawn not in taken:
            found[drawn] = None
    return list(found)
