"""Copy at a distance, and parity: one needs a memory of what was seen, the other a state that every token changes."""

from __future__ import annotations

import random
from dataclasses import dataclass

from eval.tasks.base import Draft, GeneratedTask, Scene
from eval.tasks.words import plain_words

COPIED = 8
ANSWERS = ("even", "odd")


@dataclass(frozen=True)
class CopyAtDistance(GeneratedTask):
    """Eight random words, the user's text, and the request to repeat them. The score is the share of words at their
    place. Units are words of text.
    """

    name: str = "copy"
    metric = "words_in_order"
    texts = ("haystack",)

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
    """Whether the number of ones among random bits is even or odd, behind a short example of either. Chance is 0.5."""

    name: str = "parity"
    metric = "first_word"

    def max_new_tokens(self, scene: Scene) -> int:
        return max(scene.tokens_behind("The number of ones is", f" {answer}") for answer in ANSWERS)

    def write(self, scene: Scene, size: int) -> Draft:
        rng = scene.random("examples")
        examples = [_bits(rng, 7) for _ in ANSWERS]
        for bits, parity in zip(examples, rng.sample((0, 1), 2), strict=True):
            bits.append((sum(bits) + parity) % 2)
        shots = [f"{question} {answer}." for question, answer in map(_statement, examples)]
        question, answer = _statement(_bits(scene.random("bits"), size))
        return Draft("\n".join((*shots, question)), (answer,))


def _bits(rng: random.Random, count: int) -> list[int]:
    return [rng.getrandbits(1) for _ in range(count)]


def _statement(bits: list[int]) -> tuple[str, str]:
    question = f"Bits: {' '.join(map(str, bits))}\nThe number of ones is"
    return question, ANSWERS[sum(bits) % 2]
