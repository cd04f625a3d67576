"""RULER's aggregation tasks: the most common words of a list, the most frequent words of a coded text."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from eval.tasks.base import Draft, GeneratedTask, Scene
from eval.tasks.words import compound, distinct, every_word, letters

COMMON = 10
COMMON_WORDS = (
    "Below is a numbered list of words. In these words, some appear more often than others. "
    "Memorize the ones that appear most often.\n{context}\n"
    "Question: What are the 10 most common words in the above list? "
    "Answer: The top 10 words that appear most often in the list are:"
)
FREQUENT_WORDS = (
    "Read the following coded text and track the frequency of each coded word. "
    "Find the three most frequently appeared coded words. {context}\n"
    "Question: Do not provide any explanation. Please ignore the dots '....'. "
    "What are the three most frequently appeared words in the above coded text? "
    "Answer: According to the coded text above, the three most frequently appeared words are:"
)
ZETA_OF_2 = math.pi**2 / 6


@dataclass(frozen=True)
class CommonWords(GeneratedTask):
    """Ten words 30 times, the others 3 times, numbered and shuffled; a solved example of 40 words (10 and 3 times)
    stands before. Below 4,096 tokens it is 6 and 1, and 20 words (3 and 1). Units are different words.

    Beyond the 8,000 words of wonderwords all are adjective-noun compounds, where NVIDIA takes another list.
    """

    name: str = "cwe"
    metric = "string_match_all"

    def max_new_tokens(self, scene: Scene) -> int:
        return 120

    def least(self, scene: Scene) -> int:
        return 2 * COMMON

    def write(self, scene: Scene, size: int) -> Draft:
        short = scene.length < 4096
        example, example_words = self._list(scene.random("example"), *((20, 3, 1) if short else (40, 10, 3)))
        question, common = self._list(scene.random("words"), size, *((6, 1) if short else (30, 3)))
        return Draft(f"{example} {numbered(example_words)}\n{question}", tuple(common))

    def _list(self, rng: random.Random, size: int, often: int, seldom: int) -> tuple[str, list[str]]:
        known = every_word()
        words = rng.sample(known, size) if size <= len(known) else distinct(lambda: compound(rng), size)
        listed = words[:COMMON] * often + words[COMMON:] * seldom
        rng.shuffle(listed)
        return COMMON_WORDS.format(context=numbered(listed)), words[:COMMON]


@dataclass(frozen=True)
class FrequentWords(GeneratedTask):
    """Strings of six letters, the one of rank k about N/k^2 times, shuffled; the first rank is dots to be ignored, and
    ranks two to four are asked for. The vocabulary is a fiftieth of the prompt's tokens. Units are N.
    """

    name: str = "fwe"
    metric = "string_match_all"

    def max_new_tokens(self, scene: Scene) -> int:
        return 50

    def least(self, scene: Scene) -> int:
        """From here on, rank four is always more frequent than rank five."""
        return math.ceil(ZETA_OF_2 / (1 / 4**2 - 1 / 5**2))

    def write(self, scene: Scene, size: int) -> Draft:
        rng = scene.random("words")
        vocabulary = ["...", *distinct(lambda: letters(rng, 6), max(4, (scene.length - 50) // 50) - 1)]
        text = [word for rank, word in enumerate(vocabulary, 1) for _ in range(int(size / rank**2 / ZETA_OF_2))]
        scene.random("order").shuffle(text)
        return Draft(FREQUENT_WORDS.format(context=" ".join(text)), tuple(vocabulary[1:4]))


def numbered(words: Sequence[str]) -> str:
    """`1. first 2. second`."""
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))
