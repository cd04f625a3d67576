"""Copy at a distance, and parity: one needs a memory of what was seen, the other a state that every token changes."""

from __future__ import annotations

import random
from dataclasses import dataclass

from eval.tasks.base import Draft, GeneratedTask, Scene
from eval.tasks.words import plain_words

COPIED = 8
SHOTS = 2


@dataclass(frozen=True)
class CopyAtDistance(GeneratedTask):
    """Eight random words, the user's text, and the request to repeat them. The score is the share of words at their
    place. Units are words of text.
    """

    name: str = "copy"
    metric = "words_in_order"

    def max_new_tokens(self, scene: Scene) -> int:
        return scene.tokens_behind("The words were:", f" {' '.join(self._words(scene))}")

    def write(self, scene: Scene, size: int) -> Draft:
        words = " ".join(self._words(scene))
        text = " ".join(scene.haystack.beginning(size))
        prompt = f"Memorize these {COPIED} words in their order: {words}\n\n{text}\n\nThe words were:"
        return Draft(prompt, (words,), {"distance": size})

    def _words(self, scene: Scene) -> list[str]:
        return scene.random("words").sample(plain_words("noun"), COPIED)


@dataclass(frozen=True)
class Parity(GeneratedTask):
    """Whether the number of ones among random bits is even or odd, behind two short examples. Chance is 0.5."""

    name: str = "parity"
    metric = "first_word"

    def max_new_tokens(self, scene: Scene) -> int:
        return scene.tokens_behind("The number of ones is", " even")

    def write(self, scene: Scene, size: int) -> Draft:
        examples = scene.random("examples")
        shots = [" ".join(_statement(_bits(examples, 8))) for _ in range(SHOTS)]
        question, answer = _statement(_bits(scene.random("bits"), size))
        return Draft("\n".join((*(f"{shot}." for shot in shots), question)), (answer,))


def _bits(rng: random.Random, count: int) -> list[int]:
    return [rng.getrandbits(1) for _ in range(count)]


def _statement(bits: list[int]) -> tuple[str, str]:
    question = f"Bits: {' '.join(map(str, bits))}\nThe number of ones is"
    return question, "odd" if sum(bits) % 2 else "even"
