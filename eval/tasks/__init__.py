"""The offline suite: tasks made from a seed, a length and a tokenizer, without a download."""

from __future__ import annotations

from collections.abc import Sequence

from eval.tasks.babilong import BABILONG
from eval.tasks.base import CannotBuildError, Sample, Task, TokenCounter
from eval.tasks.copying import CopyAtDistance, Parity
from eval.tasks.haystack import Haystack, open_haystack
from eval.tasks.key_value import JsonKv, LineRetrieval
from eval.tasks.needle_grid import NeedleGrid
from eval.tasks.niah import NIAH
from eval.tasks.passkey import LongLoraPasskey, Passkey
from eval.tasks.questions import QuestionAnswering
from eval.tasks.recall import RECALL
from eval.tasks.variable_tracking import VariableTracking
from eval.tasks.word_counts import CommonWords, FrequentWords
from lm.errors import UserError, did_you_mean

_QA = (QuestionAnswering("qa_1", "squad"), QuestionAnswering("qa_2", "hotpotqa"))
_GROUPS: dict[str, tuple[Task, ...]] = {
    "ruler": (*NIAH, VariableTracking(), CommonWords(), FrequentWords(), *_QA),
    "passkey": (Passkey(), LongLoraPasskey()),
    "needle-grid": (NeedleGrid(),),
    "recall": (JsonKv(), LineRetrieval(), *RECALL, CopyAtDistance(), Parity()),
    "babilong": BABILONG,
}

TASKS: dict[str, Task] = {task.name: task for group in _GROUPS.values() for task in group}
SUITES: dict[str, tuple[str, ...]] = {
    **{suite: tuple(task.name for task in group) for suite, group in _GROUPS.items()},
    "niah-single": ("niah_single_1", "niah_single_2", "niah_single_3"),
    "all": tuple(TASKS),
}


def find_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks of these names or suites, each once, in the order of their first mention.

    Raises:
        UserError: a name is neither; it says what there is and what is nearest.
    """
    found: dict[str, None] = {}
    for name in names:
        if name in TASKS:
            found[name] = None
        elif name in SUITES:
            found |= dict.fromkeys(SUITES[name])
        else:
            raise UserError(
                f"'{name}' is no task of the offline suite.{did_you_mean(name, [*TASKS, *SUITES])} "
                f"Suites: {', '.join(SUITES)}. Tasks: {', '.join(TASKS)}."
            )
    return [TASKS[name] for name in found]


__all__ = [
    "SUITES",
    "TASKS",
    "CannotBuildError",
    "Haystack",
    "Sample",
    "Task",
    "TokenCounter",
    "find_tasks",
    "open_haystack",
]
