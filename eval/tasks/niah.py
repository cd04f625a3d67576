"""RULER's eight needle-in-a-haystack tasks (arXiv 2404.06654; rules and texts as in NVIDIA's repository)."""

from __future__ import annotations

import random
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from typing import Literal

from eval.tasks.base import Draft, GeneratedTask, Scene
from eval.tasks.words import FILLER, compound, distinct, number, unique_id

NEEDLE = "One of the special magic {kind} for {key} is: {value}."
SEVERAL = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What are all the special magic {kind} for {query} mentioned in the provided text? "
    "The special magic {kind} for {query} mentioned in the provided text are"
)
ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What is the special magic {kind} for {query} mentioned in the provided text? "
    "The special magic {kind} for {query} mentioned in the provided text is"
)
DEPTHS = tuple(round(100 * step / 39) for step in range(40))
"""Per cent of the sentences before a needle in an essay."""

Kind = Literal["words", "numbers", "uuids"]
DRAWS: dict[Kind, Callable[[random.Random], str]] = {"words": compound, "numbers": number, "uuids": unique_id}


@dataclass(frozen=True)
class Niah(GeneratedTask):
    """`keys` keys with `values` values each are hidden; the values of `queries` keys are asked for.

    The haystack is the user's text (`essay`, by words), a repeated line (`noise`), or lines that are needles of other
    keys (`needle`). Keys and values are all different, unlike NVIDIA's: a key drawn twice has two answers.
    """

    name: str
    haystack: Literal["noise", "essay", "needle"]
    key: Kind = "words"
    value: Kind = "numbers"
    keys: int = 1
    values: int = 1
    queries: int = 1
    metric = "string_match_all"

    @property
    def texts(self) -> tuple[str, ...]:
        return ("haystack",) if self.haystack == "essay" else ()

    def max_new_tokens(self, scene: Scene) -> int:
        return 128

    def least(self, scene: Scene) -> int:
        return self.keys * self.values

    def write(self, scene: Scene, size: int) -> Draft:
        rng = scene.random("needles")
        keys = distinct(lambda: DRAWS[self.key](rng), self.keys)
        values = distinct(lambda: DRAWS[self.value](rng), self.keys * self.values)
        hidden = [(key, values[self.values * i + j]) for i, key in enumerate(keys) for j in range(self.values)]
        asked = rng.sample(keys, self.queries)
        answers = tuple(value for query in asked for key, value in hidden if key == query)
        needles = [NEEDLE.format(kind=self.value, key=key, value=value) for key, value in hidden]
        gold = needles[keys.index(asked[0]) * self.values]
        rng.shuffle(needles)
        if self.haystack == "essay":
            context = within_sentences(scene.haystack.beginning(size), needles, rng.sample(DEPTHS, len(needles)))
        else:
            lines = [FILLER] * size if self.haystack == "noise" else self._distractors(scene, size, keys, values)
            context = within_lines(lines, needles, scene.random("positions"))
        single = len(answers) == 1
        kind = self.value[:-1] if single else self.value
        query = ", and ".join(filter(None, [", ".join(asked[:-1]), asked[-1]]))
        prompt = (ONE if single else SEVERAL).format(kind=kind, context=context, query=query)
        return Draft(prompt, answers, {"depth": depth_of(gold, context)} if single else {})

    def _distractors(self, scene: Scene, count: int, keys: Container[str], values: Container[str]) -> list[str]:
        rng = scene.random("distractors")
        other_keys = distinct(lambda: DRAWS[self.key](rng), count, keys)
        other_values = distinct(lambda: DRAWS[self.value](rng), count, values)
        return [
            NEEDLE.format(kind=self.value, key=key, value=value)
            for key, value in zip(other_keys, other_values, strict=True)
        ]


def within_sentences(sentences: Sequence[str], needles: Sequence[str], depths: Sequence[int]) -> str:
    """The needles, in their order, behind so many per cent of the sentences; all joined by spaces."""
    cuts = [len(sentences) * depth // 100 for depth in sorted(depths)]
    pieces = list(sentences)
    for cut, needle in reversed(list(zip(cuts, needles, strict=True))):
        pieces.insert(cut, needle)
    return " ".join(pieces)


def within_lines(lines: Sequence[str], needles: Sequence[str], rng: random.Random) -> str:
    """The needles, in their order, each before another line."""
    pieces = list(lines)
    for place, needle in reversed(list(zip(sorted(rng.sample(range(len(lines)), len(needles))), needles, strict=True))):
        pieces.insert(place, needle)
    return "\n".join(pieces)


def depth_of(needle: str, context: str) -> float:
    """The share of the other characters that stand before the needle; 0 if there are none."""
    return context.index(needle) / max(1, len(context) - len(needle))


NIAH = (
    Niah("niah_single_1", "noise"),
    Niah("niah_single_2", "essay"),
    Niah("niah_single_3", "essay", value="uuids"),
    Niah("niah_multikey_1", "essay", keys=4),
    Niah("niah_multikey_2", "needle"),
    Niah("niah_multikey_3", "needle", key="uuids", value="uuids"),
    Niah("niah_multivalue", "essay", values=4),
    Niah("niah_multiquery", "essay", keys=4, queries=4),
)
