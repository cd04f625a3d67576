"""The harness without its bars of what takes no time, and without what git says outside of a repository."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from lm_eval import evaluator
from lm_eval.api import model, task
from lm_eval.loggers.utils import get_commit_from_path

ItemT = TypeVar("ItemT")


@contextmanager
def quiet() -> Iterator[None]:
    """Leaves one bar, that of the answers."""
    replaced = [
        (task, "tqdm", _no_bar),
        (model, "tqdm", _no_bar),
        (evaluator, "get_git_commit_hash", commit),
    ]
    own = [(module, name, getattr(module, name)) for module, name, _ in replaced]
    for module, name, other in replaced:
        setattr(module, name, other)
    try:
        yield
    finally:
        for module, name, other in own:
            setattr(module, name, other)


def _no_bar(items: Iterable[ItemT], **settings: Any) -> Iterable[ItemT]:
    return items


def commit() -> str | None:
    """The commit that the current folder is at, as the harness finds it; None outside of a repository."""
    try:
        described = subprocess.run(["git", "describe", "--always"], capture_output=True, check=True, text=True)
    except (subprocess.CalledProcessError, FileNotFoundError):  # the latter where there is no git
        found: str | None = get_commit_from_path(os.getcwd())
        return found
    return described.stdout.strip()
