"""Traces of chosen steps by PyTorch's profiler: which kernels and operations ran, when, on what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

PROFILE_FOLDER = "profile"
SUMMARY_ROWS = 40


def spans(steps: Sequence[int]) -> list[tuple[int, int]]:
    """Steps in any order as [first, last] of those that follow each other, each span in one trace."""
    ordered = sorted(set(steps))
    breaks = [index for index, (before, after) in enumerate(pairwise(ordered), start=1) if after != before + 1]
    return [(part[0], part[-1]) for part in _cut(ordered, breaks) if part]


def _cut(steps: list[int], places: list[int]) -> Iterator[list[int]]:
    for begin, end in pairwise([0, *places, len(steps)]):
        yield steps[begin:end]


class StepProfiler:
    """Writes `profile/steps-FIRST-LAST-rank-RANK.json.gz` for each span, and what took longest as a table beside it."""

    def __init__(self, output: Path, steps: Sequence[int], rank: int) -> None:
        self._folder = output / PROFILE_FOLDER
        self._spans = spans(steps)
        self._rank = rank
        self._running: Any = None
        self._recorded = (0, 0)

    @contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around a step; records it if it is one of those."""
        span = next(((first, last) for first, last in self._spans if first <= step <= last), None)
        if span is None:
            yield
            return
        if self._running is None:
            self._running = _started()
        with torch.profiler.record_function(f"step {step}"):
            yield
        self._recorded = (span[0], step)
        if step == span[1]:
            self.close()

    def close(self) -> None:
        """Writes what is recorded: of a span whose end did not come, what there was."""
        if self._running is not None:
            profile, self._running = self._running, None
            self._write(profile, *self._recorded)

    def _write(self, profile: Any, first: int, last: int) -> None:
        profile.__exit__(None, None, None)
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"steps-{first:06d}-{last:06d}-rank-{self._rank:05d}"
        profile.export_chrome_trace(str(self._folder / f"{name}.json.gz"))
        by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profile.key_averages().table(sort_by=by, row_limit=SUMMARY_ROWS, max_name_column_width=70)
        (self._folder / f"{name}.txt").write_text(table, encoding="utf-8")


def _started() -> Any:
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    profile = torch.profiler.profile(activities=activities, profile_memory=True)
    profile.__enter__()
    return profile
