"""BABILong-like questions (arXiv 2406.10149): the facts of a small story scattered over a long text.

How facts are scattered and how answers are scored are BABILong's rules; the stories (`eval/tasks/babi.py`), the words
of the instruction and the background are not, so scores do not compare with published ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from eval.scorers import babi_labels
from eval.tasks.babi import ROOMS, Story, where_is_person, where_is_thing, where_was_thing
from eval.tasks.base import CannotBuildError, Draft, GeneratedTask, Sample, Scene
from eval.tasks.haystack import Haystack

SHORTEST = 10
"""Words of a background sentence at least; BABILong asks for as many tokens."""

INSTRUCTION = (
    "Facts about people, rooms and things stand in their order of time among the sentences of another text. "
    "Answer the question from these facts alone. Whoever moves takes along what he or she holds."
)
EXAMPLE = "<example>\n{facts}\nQuestion: {question}\nAnswer: {answer}.\n</example>"
TEMPLATE = "{instruction}\n\n{examples}\n\n<context>\n{context}\n</context>\nQuestion: {question}\nAnswer:"


@dataclass(frozen=True)
class BabiLong(GeneratedTask):
    """Sentences of the user's text of ten words or more, from a random one on, the last one cut; facts stand before
    sentences drawn with replacement, in their order. Solved stories of other people and rooms come first. Units are
    words of text.
    """

    name: str
    story: Callable[[random.Random], Story]
    examples: tuple[Story, ...]
    metric = "babi_labels"
    texts = ("haystack",)

    def max_new_tokens(self, scene: Scene) -> int:
        return max(scene.tokens_behind("Answer:", f" {room}.") for room in ROOMS) + 4

    def least(self, scene: Scene) -> int:
        return SHORTEST

    def write(self, scene: Scene, size: int) -> Draft:
        story = self.story(scene.random("story"))
        text = background(scene.haystack, scene.random("background"), size)
        context = scatter(story.facts, text, scene.random("places"))
        examples = "\n".join(
            EXAMPLE.format(facts=" ".join(example.facts), question=example.question, answer=example.answer)
            for example in self.examples
        )
        prompt = TEMPLATE.format(instruction=INSTRUCTION, examples=examples, context=context, question=story.question)
        return Draft(prompt, (story.answer,), {"facts": len(story.facts), "question": story.question})

    def score(self, prediction: str, sample: Sample) -> float:
        return babi_labels(prediction, sample.answers, str(sample.meta["question"]), ROOMS)


def background(haystack: Haystack, rng: random.Random, words: int) -> list[str]:
    """Sentences of so many words together, from a random one on; behind the last the first follows.

    Raises:
        CannotBuildError: the text has no sentence that is long enough.
    """
    sentences = _long_sentences(haystack)
    if not sentences:
        option = haystack.written("haystack")
        raise CannotBuildError(f"{option}: '{haystack.name}' has no sentence of {SHORTEST} words or more.")
    start = rng.randrange(len(sentences))
    chosen: list[str] = []
    while words > 0:
        sentence = sentences[(start + len(chosen)) % len(sentences)]
        chosen.append(" ".join(sentence[:words]))
        words -= len(sentence)
    return chosen


def scatter(facts: tuple[str, ...], sentences: list[str], rng: random.Random) -> str:
    """The facts, in their order, before or behind sentences; several may stand together."""
    pieces = list(sentences)
    places = sorted(rng.choices(range(len(sentences) + 1), k=len(facts)))
    for place, fact in reversed(list(zip(places, facts, strict=True))):
        pieces.insert(place, fact)
    return " ".join(pieces)


@lru_cache(maxsize=2)
def _long_sentences(haystack: Haystack) -> list[list[str]]:
    words = (sentence.split() for sentence in haystack.sentences)
    return [sentence for sentence in words if len(sentence) >= SHORTEST]


BABILONG = (
    BabiLong(
        "babilong_qa1",
        where_is_person,
        (
            Story(("Julie went to the school.", "Bill moved to the park."), "Where is Julie?", "school"),
            Story(("Fred moved to the cinema.", "Fred travelled to the shop."), "Where is Fred?", "shop"),
        ),
    ),
    BabiLong(
        "babilong_qa2",
        where_is_thing,
        (
            Story(
                ("Julie went to the school.", "Julie took the bottle there.", "Julie moved to the park."),
                "Where is the bottle?",
                "park",
            ),
            Story(
                (
                    "Fred went to the shop.",
                    "Fred got the book there.",
                    "Fred dropped the book.",
                    "Fred left for the park.",
                ),
                "Where is the book?",
                "shop",
            ),
        ),
    ),
    BabiLong(
        "babilong_qa3",
        where_was_thing,
        (
            Story(
                ("Julie went to the school.", "Julie took the bottle there.", "Julie moved to the park."),
                "Where was the bottle before the park?",
                "school",
            ),
            Story(
                (
                    "Fred went to the shop.",
                    "Fred got the book there.",
                    "Fred moved to the park.",
                    "Fred went to the cinema.",
                ),
                "Where was the book before the cinema?",
                "park",
            ),
        ),
    ),
)
