"""A needle at every depth of every length, after G. Kamradt's test, with a random number in place of a judge."""

from __future__ import annotations

from dataclasses import dataclass

from eval.tasks.base import Draft, GeneratedTask, Scene
from eval.tasks.words import number, plain_words

NEEDLE = "The secret number of the {thing} is {value}."
QUESTION = "What is the secret number of the {thing}? The secret number of the {thing} is"


@dataclass(frozen=True)
class NeedleGrid(GeneratedTask):
    """The user's text with one sentence at a depth, behind the last whole sentence there. Sample after sample goes
    through the depths, evenly from 0 to 1, so a count that is a multiple of `depths` fills the grid.
    """

    name: str = "needle_grid"
    depths: int = 11
    metric = "string_match_all"
    texts = ("haystack",)

    def max_new_tokens(self, scene: Scene) -> int:
        return 32

    def write(self, scene: Scene, size: int) -> Draft:
        rng = scene.random("needle")
        thing, value = rng.choice(plain_words("noun")), number(rng)
        step = scene.index % self.depths
        sentences = scene.haystack.beginning(size)
        before = len(sentences) if step == self.depths - 1 else _whole(sentences, size * step // (self.depths - 1))
        text = " ".join((*sentences[:before], NEEDLE.format(thing=thing, value=value), *sentences[before:]))
        return Draft(f"{text}\n\n{QUESTION.format(thing=thing)}", (value,), {"depth": step / (self.depths - 1)})


def _whole(sentences: list[str], words: int) -> int:
    """How many sentences end within so many words."""
    for count, sentence in enumerate(sentences):
        words -= len(sentence.split())
        if words < 0:
            return count
    return len(sentences)
