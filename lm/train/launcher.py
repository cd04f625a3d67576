"""The processes that started this rank, and whether they are still there."""

from __future__ import annotations

import os
from pathlib import Path

_WORDS = ("torchrun", "deepspeed", "torch.distributed.run", "torch.distributed.launch", "deepspeed.launcher.launch")


class Launcher:
    """The launcher's processes above this one, nearest first.

    SIGTERM ends the `deepspeed` command alone: it hands nothing on, so its ranks would train on without anyone who
    waits for them. torchrun's ranks are left behind by a SIGKILL. A process that no launcher started has none, and
    may outlive its parent, as under nohup.
    """

    def __init__(self) -> None:
        self._chain = _launchers(os.getpid())

    def gone(self) -> bool:
        """Whether a launcher that was there at the start is there no more."""
        child = os.getpid()
        for launcher in self._chain:
            if _parent(child) != launcher:
                return True
            child = launcher
        return False


def _launchers(process: int) -> tuple[int, ...]:
    parent = _parent(process)
    if parent is None or not _is_launcher(parent):
        return ()
    return (parent, *_launchers(parent))


def _parent(process: int) -> int | None:
    """None where the process is gone, or the system does not tell."""
    try:
        # After the name, which stands in brackets and may hold anything: state, parent, ...
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def _is_launcher(process: int) -> bool:
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    # Only the interpreter's own words: what follows the program's name is the user's.
    return any(word.rpartition("/")[2] in _WORDS for word in words[:4])
