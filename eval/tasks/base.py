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


class TokenCounter(Protocol):
    """Whatever cuts text into tokens: a Hugging Face tokenizer without its special tokens, or one of Braid's."""

    def encode(self, text: str) -> list[int]: ...


class CannotBuildError(UserError):
    """A task has no honest sample here: the length is too short for it, or a file it needs was not given."""


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

    def samples(
        self, tokenizer: TokenCounter, length: int, count: int, seed: int, haystack: Haystack
    ) -> list[Sample]: ...

    def score(self, prediction: str, sample: Sample) -> float: ...


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
        key = "\n".join((str(self.seed), self.task, str(self.length), str(self.index), purpose))
        return random.Random(int.from_bytes(hashlib.sha256(key.encode()).digest()))

    def tokens(self, text: str) -> int:
        """How many tokens the text has."""
        return len(self.tokenizer.encode(text))


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
            CannotBuildError: the smallest honest sample is longer, or the material is missing.
        """
        made: list[Sample] = []
        size = None
        for index in range(count):
            size, sample = self._sample(Scene(self.name, index, length, seed, tokenizer, haystack), size)
            made.append(sample)
        return made

    def score(self, prediction: str, sample: Sample) -> float:
        """The benchmark's own score of one prediction, from 0 to 1."""
        return METRICS[self.metric](prediction, sample.answers)

    def _sample(self, scene: Scene, guess: int | None) -> tuple[int, Sample]:
        answer = self.max_new_tokens(scene)
        drafts: dict[int, tuple[Draft, int]] = {}

        def cost(size: int) -> int:
            draft = self.write(scene, size)
            drafts[size] = draft, scene.tokens(draft.prompt)
            return drafts[size][1]

        least = self.least(scene)
        size = largest_fitting(cost, scene.length - answer, least, self.most(scene), guess)
        if size is None:
            raise CannotBuildError(
                f"{self.name} does not fit into {scene.length} tokens: its smallest prompt has {drafts[least][1]} with "
                f"this tokenizer, and its answer {answer}. Ask for a longer length, or leave the task out."
            )
        draft, tokens = drafts[size]
        sample_id = f"{self.name}/{scene.length}/{scene.seed}/{scene.index}"
        meta = {**draft.meta, "size": size, "tokens": tokens}
        return size, Sample(self.name, sample_id, scene.length, draft.prompt, draft.answers, answer, meta)


def largest_fitting(
    cost: Callable[[int], int], budget: int, least: int, most: int | None = None, guess: int | None = None
) -> int | None:
    """The largest size whose cost fits the budget (one that costs exactly the budget is large enough), or None.

    A binary search that starts where a straight line through what is known points to: prompts grow almost evenly, so
    that it takes a handful of steps. `cost` may dip here and there; the size returned was always found to fit.
    """
    low, low_cost = least, cost(least)
    base = low_cost
    if low_cost > budget:
        return None
    high, high_cost = (None, 0) if most is None else (most + 1, 0)
    n = guess if guess is not None and guess > least else least + 16
    steps = 0
    while low_cost < budget and (high is None or high - low > 1):
        n = max(n, low + 1) if high is None else min(max(n, low + 1), high - 1)
        spent = cost(n)
        if spent <= budget:
            low, low_cost = n, spent
        else:
            high, high_cost = n, spent
        steps += 1
        if high is not None and high_cost and steps % 3 == 0:
            n = (low + high) // 2
        elif high is not None and high_cost:
            n = low + (budget - low_cost) * (high - low) // (high_cost - low_cost)
        else:
            n = low + max(1, (budget - low_cost) * (low - least) // max(1, low_cost - base))
    return low
