"""What a task is, and how its samples are made to fit a length.

Every sample is a function of (seed, task, length, index), the tokenizer and the haystack alone: its random numbers come
from streams of its own, so neither other tasks nor other samples, the process or the machine can change it.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from eval.scorers import METRICS
from eval.tasks.haystack import Haystack
from lm.errors import UserError

Meta = Mapping[str, str | int | float]
FULL = 0.9
"""Where the material ends, a sample must fill this share of its budget to be called one of its length."""


class TokenCounter(Protocol):
    """Whatever cuts text into tokens: a Hugging Face tokenizer without its special tokens, or one of Braid's."""

    def encode(self, text: str) -> list[int]: ...


class CannotBuildError(UserError):
    """A task has no honest sample here: the length is too short for it, or a file it needs was not given."""

    def __init__(self, message: str, needs: int | None = None) -> None:
        """needs: where the length is too short, the tokens of the smallest sample."""
        super().__init__(message)
        self.needs = needs


@dataclass(frozen=True)
class Sample:
    """One question over a long text.

    `length` is the budget: the tokens of `prompt` (which ends with the answer prefix) plus `max_new_tokens` stay within
    it. `meta` always holds `tokens`, those of the prompt, and what the task wants to be plotted by, such as `depth`
    from 0 (front) to 1 (end).
    """

    task: str
    id: str
    length: int
    prompt: str
    answers: tuple[str, ...]
    max_new_tokens: int
    meta: Meta


class Task(Protocol):
    """A benchmark's rule for samples and for scoring them."""

    @property
    def name(self) -> str: ...

    @property
    def metric(self) -> str: ...

    @property
    def texts(self) -> tuple[str, ...]:
        """Which of `haystack`, `squad` and `hotpotqa` its samples are made from."""

    def samples(
        self, tokenizer: TokenCounter, length: int, count: int, seed: int, haystack: Haystack
    ) -> list[Sample]: ...

    def score(self, prediction: str, sample: Sample) -> float: ...


def stream(*key: object) -> random.Random:
    """Random numbers that depend on the key alone."""
    digest = hashlib.sha256("\n".join(map(str, key)).encode()).digest()
    return random.Random(int.from_bytes(digest))


@dataclass(frozen=True)
class Scene:
    """What one sample is made from."""

    task: str
    index: int
    length: int
    seed: int
    tokenizer: TokenCounter
    haystack: Haystack

    def random(self, purpose: str) -> random.Random:
        """The numbers of this sample for one purpose, the same at every call: a rewritten prompt draws them again."""
        return stream(self.seed, self.task, self.length, self.index, purpose)

    def tokens(self, text: str) -> int:
        """How many tokens the text has."""
        return len(self.tokenizer.encode(text))

    def tokens_behind(self, text: str, continuation: str) -> int:
        """How many tokens the continuation adds to the text."""
        return self.tokens(text + continuation) - self.tokens(text)


@dataclass(frozen=True)
class Draft:
    """A prompt of some size, its answers, and what is to be known of it."""

    prompt: str
    answers: tuple[str, ...]
    meta: Meta = field(default_factory=dict)


class GeneratedTask(ABC):
    """A task whose prompt grows by units (words, lines, pairs) until it fills the length."""

    name: str
    metric: str

    @property
    def texts(self) -> tuple[str, ...]:
        """Which of the user's texts its samples are made from."""
        return ()

    @abstractmethod
    def write(self, scene: Scene, size: int) -> Draft:
        """The sample with `size` units of haystack; the same scene and size give the same draft."""

    @abstractmethod
    def max_new_tokens(self, scene: Scene) -> int:
        """Tokens that the answer may take."""

    def least(self, scene: Scene) -> int:
        """The fewest units with which the question can be answered and is worth asking."""
        return 1

    def most(self, scene: Scene) -> int | None:
        """The most units there are, where the material ends."""
        return None

    def samples(self, tokenizer: TokenCounter, length: int, count: int, seed: int, haystack: Haystack) -> list[Sample]:
        """`count` samples of at most `length` tokens, as long as the unit allows. More of them begin with the same.

        Raises:
            CannotBuildError: the smallest honest sample is longer, or there is not enough material.
        """
        made: list[Sample] = []
        for index in range(count):
            made.append(self.sample(Scene(self.name, index, length, seed, tokenizer, haystack), made))
        return made

    def score(self, prediction: str, sample: Sample) -> float:
        """The benchmark's own score of one prediction, from 0 to 1."""
        return METRICS[self.metric](prediction, sample.answers)

    def sample(self, scene: Scene, before: list[Sample]) -> Sample:
        """One sample; the size of the last one before it is where the search begins."""
        answer = self.max_new_tokens(scene)
        budget = scene.length - answer
        drafts: dict[int, tuple[Draft, int]] = {}

        def cost(size: int) -> int:
            draft = self.write(scene, size)
            drafts[size] = draft, scene.tokens(draft.prompt)
            return drafts[size][1]

        least, most = self.least(scene), self.most(scene)
        size = largest_fitting(cost, budget, least, most, int(before[-1].meta["size"]) if before else least + 16)
        if size is None:
            raise CannotBuildError(
                f"{self.name} does not fit into {scene.length} tokens: its smallest prompt has {drafts[least][1]} with "
                f"this tokenizer, and its answer {answer}. Ask for a longer length, or leave the task out.",
                needs=drafts[least][1] + answer,
            )
        draft, tokens = drafts[size]
        if size == most and tokens < FULL * budget:
            raise CannotBuildError(
                f"{self.name} cannot fill {scene.length} tokens: all of its material has {tokens}. "
                f"Ask for a shorter length, or name larger files."
            )
        sample_id = f"{self.name}/{scene.length}/{scene.seed}/{scene.index}"
        meta = {**draft.meta, "size": size, "tokens": tokens}
        return Sample(self.name, sample_id, scene.length, draft.prompt, draft.answers, answer, meta)


def largest_fitting(cost: Callable[[int], int], budget: int, least: int, most: int | None, guess: int) -> int | None:
    """A size that leaves less of the budget than an average unit or a thousandth; None if not even `least` fits.

    A bisection that begins where a straight line through what is known points to: prompts grow almost evenly, so that
    it takes two or three steps from a good guess. `cost` may dip here and there; the size returned was found to fit.
    """
    low, low_cost = least, cost(least)
    base = low_cost
    if low_cost > budget:
        return None
    high = None if most is None else most + 1
    high_cost: int | None = None
    n, steps = guess, 0
    while high is None or high - low > 1:
        unit = (low_cost - base) / max(1, low - least)
        if budget - low_cost < max(1, unit, budget / 1000):
            break
        n = max(n, low + 1) if high is None else min(max(n, low + 1), high - 1)
        spent = cost(n)
        if spent <= budget:
            low, low_cost = n, spent
        else:
            high, high_cost = n, spent
        steps += 1
        if high is None or high_cost is None:
            n = low + max(1, (budget - low_cost) * (low - least) // max(1, low_cost - base))
        elif steps % 4 == 0:
            n = (low + high) // 2
        else:
            n = low + (budget - low_cost) * (high - low) // (high_cost - low_cost)
    return low
