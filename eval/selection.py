"""Which questions an evaluation asks: named suites or tasks by name, at every length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from eval.options import SuiteOptions
from eval.tasks import TASKS, CannotBuildError, Haystack, Sample, Task, TokenCounter
from lm.errors import UserError, did_you_mean

SUITES: dict[str, tuple[str, ...]] = {"all": tuple(TASKS)}
"""Tasks by the name of a suite."""


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


def chosen_tasks(options: SuiteOptions, suite_key: str, tasks_key: str) -> list[Task]:
    """The tasks of a suite, or those named; the keys are what the user wrote them under.

    Raises UserError, with the nearest name, for one that does not exist.
    """
    if options.suite is not None:
        _require(options.suite, SUITES, suite_key, "suite")
        return [TASKS[name] for name in SUITES[options.suite]]
    for name in options.tasks:
        _require(name, TASKS, tasks_key, "task")
    return [TASKS[name] for name in options.tasks]


def _require(name: str, known: Iterable[str], key: str, kind: str) -> None:
    if name not in known:
        raise UserError(f"{key}: there is no {kind} '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}")


def write_questions(
    task: Task, length: int, tokenizer: TokenCounter, options: SuiteOptions, haystack: Haystack
) -> Questions | Skipped:
    """The samples of a task at a length, or why there are none."""
    try:
        samples = task.samples(tokenizer, length, options.samples, options.seed, haystack)
    except CannotBuildError as error:
        return Skipped(task.name, length, str(error))
    return Questions(task, length, samples)
