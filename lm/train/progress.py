"""What a person sees while a run prepares and trains: live bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import EllipsisType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress import Progress as Live
from rich.table import Column
from rich.text import Text

from lm.train.format import duration, short_number

SPEED_WINDOW_STEPS = 50
PACE_SECONDS = 600.0
"""Over which the pace of a phase is told: its pieces of work may take minutes each."""


class Phase:
    """Handle of a piece of work on the screen; given by `Progress.phase`."""

    def __init__(self, live: Live, description: str, total: float | None) -> None:
        self._live = live
        self._task = live.add_task(description, total=total, note="", clock="")
        self.note = ""

    def update(
        self, completed: float | None = None, *, total: float | EllipsisType | None = ..., note: str | None = None
    ) -> None:
        """Sets how much is done, out of how much (any unit; None for unknown), and a few words: `3.2M tokens`.

        What is left out stays as it is. The last note is on the line that the phase leaves behind.
        """
        self.note = self.note if note is None else note
        if not isinstance(total, EllipsisType):
            # Live.update cannot make a known total unknown again.
            next(task for task in self._live.tasks if task.id == self._task).total = total
        self._live.update(self._task, completed=completed, note=self.note)

    def advance(self, amount: float = 1) -> None:
        """Adds to what is done."""
        self._live.advance(self._task, amount)


class TrainingBar:
    """Handle of the training bar; given by `Progress.training`."""

    def __init__(self, live: Live, say: Callable[[str], None], steps: int, step: int, every: int) -> None:
        self._live = live
        self._say = say
        self._steps = steps
        self._every = every
        self._task = live.add_task("training", total=steps, completed=step, note="", clock="")
        self._times = deque([(step, time.monotonic())], maxlen=SPEED_WINDOW_STEPS)
        self.step = step
        self.figures = ""

    def update(self, record: Mapping[str, Any]) -> None:
        """Shows one record of `lm.train.log`; a record without a `loss` (an evaluation) gets only its own line."""
        step = record["step"]
        if record.get("loss") is not None:
            self._advance(step, record)
        if record.get("validation_loss") is not None:
            self._say(f"step {step}  {_validation(record)}")
        if scores := _scores(record):
            self._say(f"step {step}  {scores}")

    def _advance(self, step: int, record: Mapping[str, Any]) -> None:
        self._times.append((step, time.monotonic()))
        self.step = step
        self.figures = _figures(record)
        left = self._time_left()
        self._live.update(self._task, completed=step, note=self.figures, clock=left)
        if not self._live.console.is_terminal and (step % self._every == 0 or step == self._steps):
            self._say(f"step {step}/{self._steps}  {self.figures}  {left}".rstrip())

    def _time_left(self) -> str:
        (first_step, first_time), (last_step, last_time) = self._times[0], self._times[-1]
        if last_step <= first_step or self.step >= self._steps:
            return ""
        return duration((self._steps - self.step) * (last_time - first_time) / (last_step - first_step)) + " left"


def _figures(record: Mapping[str, Any]) -> str:
    parts = [f"loss {record['loss']:.4f}"]
    if layers := [value for key, value in record.items() if key.startswith("layer_")]:
        parts.append(f"layers {min(layers):.3f} to {max(layers):.3f}")
    if record.get("tokens_per_second") is not None:
        parts.append(f"{short_number(record['tokens_per_second'])} tok/s")
    if record.get("mfu") is not None:
        parts.append(f"MFU {record['mfu']:.1%}")
    return "  ".join(parts)


def _validation(record: Mapping[str, Any]) -> str:
    parts = [f"held-out loss {record['validation_loss']:.4f}"]
    if record.get("average_validation_loss") is not None:
        parts.append(f"with averaged weights {record['average_validation_loss']:.4f}")
    if record.get("validation_accuracy") is not None:
        parts.append(f"accuracy {record['validation_accuracy']:.2%}")
    if record.get("validation_bits_per_byte") is not None:
        parts.append(f"{record['validation_bits_per_byte']:.4f} bits per byte")
    return "  ".join(parts)


def _scores(record: Mapping[str, Any]) -> str:
    """`passkey@512 35 %`, for every task that was asked."""
    asked = {
        key.removeprefix("eval/"): value for key, value in record.items() if key.startswith("eval/") and "@" in key
    }
    return "  ".join(f"{name} {value:.0%}" for name, value in asked.items() if not name.endswith("/nll"))


class _Count(ProgressColumn):
    """`213/400`, or nothing while the total is unknown."""

    def render(self, task: Task) -> Text:
        if task.total is None:
            return Text("")
        return Text(f"{short_number(task.completed, 4)}/{short_number(task.total, 4)}", style="progress.download")


class _Clock(ProgressColumn):
    """Time left where the work tells it or its pace does, else time spent."""

    def render(self, task: Task) -> Text:
        clock = task.fields["clock"]
        if not clock and task.time_remaining:
            clock = f"{duration(task.time_remaining)} left"
        return Text(clock or duration(task.elapsed or 0), style="progress.remaining")


class Progress:
    """The screen of a run. Only rank 0 shows anything; every call is safe on the others.

    On a terminal phases and training are live bars, and each leaves one line when it is done. Elsewhere (a file, a
    pipe) every phase prints a line at its start and end, and training one line every `every` steps.
    """

    def __init__(self, *, rank: int = 0, every: int = 1, console: Console | None = None) -> None:
        """`console` is standard output unless given."""
        self._console = console or Console(quiet=rank != 0)
        self._every = every
        self._depth = 0
        ascii_only = self._console.options.ascii_only
        self._done = "*" if ascii_only else "✓"
        self._live = Live(
            SpinnerColumn("line" if ascii_only else "dots", style="cyan"),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6)),
            _Count(table_column=Column(no_wrap=True, justify="right")),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
            _Clock(table_column=Column(no_wrap=True, justify="right")),
            console=self._console,
            disable=self._console.quiet or not self._console.is_terminal,
            expand=True,
            transient=True,
            refresh_per_second=5,
            speed_estimate_period=PACE_SECONDS,
        )

    def say(self, message: str) -> None:
        """One line of text, above the bars where there are any."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def phase(self, description: str, total: float | None = None) -> Iterator[Phase]:
        """Work before, during or after training: `with progress.phase("training the tokenizer") as phase: ...`.

        A spinner while `total` is unknown (it may come and go, by `Phase.update`), else a bar. A phase inside another,
        or inside training, is a second bar while it lasts and leaves no line.
        """
        outermost = self._depth == 0
        start = time.monotonic()
        if outermost and not self._console.is_terminal:
            self.say(f"{description} ...")
        with self._shown():
            phase = Phase(self._live, description, total)
            try:
                yield phase
            finally:
                self._live.remove_task(phase._task)
        if outermost:
            self._finished(description, phase.note, time.monotonic() - start)

    @contextmanager
    def training(self, steps: int, step: int = 0) -> Iterator[TrainingBar]:
        """The training bar of a run of `steps`, of which `step` are already done."""
        start = time.monotonic()
        with self._shown():
            bar = TrainingBar(self._live, self.say, steps, step, self._every)
            try:
                yield bar
            finally:
                self._live.remove_task(bar._task)
        self._finished(f"training, {bar.step} of {steps} steps", bar.figures, time.monotonic() - start)

    def _finished(self, description: str, note: str, seconds: float) -> None:
        line = Text.assemble((f"{self._done} ", "green"), description, (f"  {note}" if note else "", "dim"))
        self._console.print(line.append(f"  {duration(seconds)}", "progress.elapsed"), soft_wrap=True)

    @contextmanager
    def _shown(self) -> Iterator[None]:
        # Only the outermost piece of work owns the live display: what runs inside it adds rows to it.
        self._depth += 1
        if self._depth == 1:
            self._live.start()
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._live.stop()
