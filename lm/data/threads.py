"""How many threads of this process turn text into tokens."""

from __future__ import annotations

import os

_chosen: int | None = None


def use_threads(number: int) -> None:
    """Sets the threads that encode: one where several processes share the work."""
    global _chosen
    _chosen = number
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if number > 1 else "false"


def threads() -> int:
    """The threads that encode; one for each core unless they were set."""
    return _chosen or cpu_cores()


def cpu_cores() -> int:
    """The cores that this process may use."""
    # Containers are often given fewer cores than the machine has; where that can be asked, ask.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
