"""What all benchmarks share: runs timed in turn, peak memory, the machine in words, files of figures."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm.train.environment import describe_environment
from lm.train.memory import keep_freed_memory, release_freed_memory

Run = Callable[[], object]
Save = Callable[[Mapping[str, Any]], None]
"""Keeps the figures so far, over those of before."""
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def device() -> torch.device:
    """Where every side of a comparison runs: this machine's GPU, or its CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Clock:
    """What seconds are: of the wall, or of this process on the CPU, which other processes disturb less.

    The second is for one thread: threads that wait for each other count as busy.
    """

    read: Callable[[], float] = time.perf_counter
    name: str = "wall clock"


WALL, CPU = Clock(), Clock(time.process_time, "CPU time of the process")


def interleaved(runs: Mapping[str, Run], rounds: int, budget: float, clock: Clock = WALL) -> dict[str, float]:
    """Median seconds of each run: all are run once to warm up, then in turn, so that other load meets them alike.

    rounds: at most so many of each after the warm-up; budget: seconds after which no further round begins. Where the
    warm-up alone has used the budget, its times are the figures of long runs, and short ones are run once more.
    Freed memory is kept for all, as it is in training.
    """
    keep_freed_memory()
    begin = time.perf_counter()
    warm_up = {name: _seconds(run, clock) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        if time.perf_counter() - begin > budget:
            break
        for name, run in runs.items():
            seconds[name].append(_seconds(run, clock))
    for name, run in runs.items():
        if not seconds[name]:
            short = warm_up[name] < budget / 4
            seconds[name].append(_seconds(run, clock) if short else warm_up[name])
    return {name: statistics.median(seconds[name]) for name in runs}


def _seconds(run: Run, clock: Clock) -> float:
    begin = clock.read()
    run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock.read() - begin


def peak_bytes(run: Run) -> int | None:
    """The most memory that one call of `run` holds beyond what was held before; None where that cannot be seen.

    On a GPU what PyTorch's allocator gave out, on Linux the resident pages of the process. Call `run` once before:
    threads and tables that come with a first call are not its own.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    if not os.access(_CLEAR, os.W_OK):
        return None
    keep_freed_memory(False)
    release_freed_memory()  # used again, it would not be seen
    _CLEAR.write_text("5")  # the peak begins anew from what is resident now
    before = _resident("VmRSS")
    run()
    return max(0, _resident("VmHWM") - before)


def _resident(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def forward_and_backward(call: Callable[[], Tensor], leaves: list[Tensor]) -> Run:
    """A run of `call` and of its backward pass with a gradient of ones; `leaves` are freed of their gradients after it.

    So a run begins with nothing of the one before, and its gradients count as memory of its own.
    """

    def run() -> None:
        out = call()
        out.backward(torch.ones_like(out))
        for leaf in leaves:
            leaf.grad = None

    return run


@contextlib.contextmanager
def under_way(what: str, number: int = 1, total: int = 1) -> Iterator[None]:
    """Says on a terminal what is being measured, in a line that is gone when it is done.

    A live bar would be drawn while the clock runs; this line is written before and taken back after.
    """
    shown = sys.stderr.isatty()
    if shown:
        print(f"measuring {what}, {number} of {total} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        if shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def write_figures(path: Path | None, clock: Clock, figures: Mapping[str, Any]) -> None:
    """Writes the figures as JSON, with the machine they were taken on; nothing where path is None."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        told = {"machine": describe_environment(), "clock": clock.name, **figures}
        path.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:,.1f}"


def mebibytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**20:,.1f}"
