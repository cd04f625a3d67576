"""The offline suite: tasks made from a seed, a length and a tokenizer, without a download."""

from __future__ import annotations

from eval.tasks.base import CannotBuildError, Sample, Task, TokenCounter
from eval.tasks.haystack import Haystack, open_haystack
from eval.tasks.passkey import LongLoraPasskey, Passkey

TASKS: dict[str, Task] = {task.name: task for task in (Passkey(), LongLoraPasskey())}

__all__ = ["TASKS", "CannotBuildError", "Haystack", "Sample", "Task", "TokenCounter", "open_haystack"]
