"""Which questions an evaluation asks: named suites or tasks by name, at every length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from eval.options import SuiteOptions
from eval.tasks import CannotBuildError, Haystack, Sample, Task, TokenCounter, find_tasks
from lm.errors import UserError


@dataclass(frozen=True)
class Questions:
    """The samples of one task at one length."""

    task: Task
    length: int
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Skipped:
    """A task that has no honest samples at a length, and why."""

    task: str
    length: int
    reason: str


def chosen_tasks(options: SuiteOptions, key: str) -> list[Task]:
    """The tasks that the options name; key: what the user wrote the names under.

    Raises UserError, with the nearest name, for one that is neither a task nor a suite.
    """
    try:
        return find_tasks(options.tasks)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def write_questions(
    task: Task, length: int, tokenizer: TokenCounter, options: SuiteOptions, haystack: Haystack
) -> Questions | Skipped:
    """The samples of a task at a length, or why there are none."""
    try:
        samples = task.samples(tokenizer, length, options.samples, options.seed, haystack)
    except CannotBuildError as error:
        return Skipped(task.name, length, str(error))
    return Questions(task, length, samples)
