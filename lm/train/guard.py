"""Spikes: steps whose loss or gradient norm stands out, judged before they are applied; and what ends a sick run.

A step is judged by numbers that all ranks have alike, so all decide alike. What was decided is known by the rows that
the step read, and kept: a run that is killed and started again decides the same about the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from lm.errors import UserError
from lm.train.guard_options import GuardOptions
from lm.train.rows_read import Span, joined

MAX_SKIPPED_IN_A_ROW = 20
LEAST_DEVIATION = 0.01
"""Of the mean: a loss that hardly moves is not to make a spike of every small change."""

Action = Literal["warn", "skip", "accept", "rewind"]


class SkippedSteps:
    """Counts the steps in a row whose loss or gradient was not finite."""

    def __init__(self, lr_key: str) -> None:
        """`lr_key`: where a person sets the learning rate."""
        self._lr_key = lr_key
        self._in_a_row = 0

    def note(self, finite: bool) -> None:
        """To be told of every step. Raises UserError when too many were skipped."""
        self._in_a_row = 0 if finite else self._in_a_row + 1
        if self._in_a_row == MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"the last {MAX_SKIPPED_IN_A_ROW} steps had a loss or gradient that is not finite and were skipped. "
                f"Lower {self._lr_key}, or look for what is wrong in the data; then start again."
            )


@dataclass(frozen=True)
class Decision:
    """What was done about a spike.

    step: the one that spiked, counted from 1. rows: that it read, [first, end). figure: `loss` or `grad_norm`, which
    was `value` where the window had `mean` and `deviation`. documents: that the rows are made of. checkpoint: the step
    that was gone back to. stepped_over: the rows that are not read again. reason: why a rewind became a skip.
    """

    step: int
    action: Action
    rows: Span
    figure: str
    value: float
    mean: float
    deviation: float
    documents: tuple[int, ...] = ()
    checkpoint: int | None = None
    stepped_over: Span | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Decision:
        """The inverse of `to_json`. Raises TypeError for other fields."""
        over = values["stepped_over"]
        spans = {"rows": tuple(values["rows"]), "stepped_over": None if over is None else tuple(over)}
        return cls(**{**values, **spans, "documents": tuple(values["documents"])})

    def __str__(self) -> str:
        sigmas = (self.value - self.mean) / self.deviation
        named = ", ".join(map(str, self.documents[:20])) + (" ..." if len(self.documents) > 20 else "")
        text = (
            f"step {self.step}: {self.figure} {self.value:.4g} is {sigmas:.1f} deviations above {self.mean:.4g}, in "
            f"rows {self.rows[0]} to {self.rows[1] - 1} of documents {named}"
        )
        if self.action == "rewind" and self.stepped_over is not None:
            first, end = self.stepped_over
            return f"{text}; going back to step {self.checkpoint} and stepping over rows {first} to {end - 1}"
        done = {"warn": "applied all the same", "skip": "left out", "accept": "accepted as the new level"}
        why = "" if self.reason is None else f", since {self.reason}"
        return f"{text}; {done.get(self.action, self.action)}{why}"


@dataclass(frozen=True)
class Memory:
    """What the guard knows of the steps so far; kept in every checkpoint.

    losses, norms: of the window's applied steps. in_a_row: spikes left out one after another. last_spike: step of the
    newest. rewinds: steps whose spikes were gone back from, each as often as it spiked with other rows. rewound_to: the
    checkpoints' steps. stepped_over: rows.
    """

    losses: tuple[float, ...] = ()
    norms: tuple[float, ...] = ()
    in_a_row: int = 0
    last_spike: int | None = None
    rewinds: tuple[int, ...] = ()
    rewound_to: tuple[int, ...] = ()
    stepped_over: tuple[Span, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Memory:
        """The inverse of `to_json`; of no values, the memory of a run that begins."""
        known: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list | tuple) else value for key, value in values.items()
        }
        spans = tuple((int(first), int(end)) for first, end in known.get("stepped_over", ()))
        known["stepped_over"] = spans
        return cls(**known)

    def with_rewind(self, decision: Decision) -> Memory:
        """The same after a rewind, which is remembered once however often it is told of."""
        if self.knows(decision):
            return self
        assert decision.checkpoint is not None
        assert decision.stepped_over is not None
        return replace(
            self,
            rewinds=(*self.rewinds, decision.step),
            rewound_to=tuple(sorted({*self.rewound_to, decision.checkpoint})),
            stepped_over=joined([*self.stepped_over, decision.stepped_over]),
        )

    def knows(self, rewind: Decision) -> bool:
        """Whether a rewind is remembered: the rows of its spike are stepped over, and so were read that once."""
        return any(first <= rewind.rows[0] < end for first, end in self.stepped_over)


class Guard:
    """Judges the steps of one run."""

    def __init__(self, options: GuardOptions, decided: Iterable[Decision] = ()) -> None:
        """`decided`: what earlier starts of the run did."""
        self.options = options
        self.memory = Memory()
        self.decisions = list(decided)
        """All that was decided, oldest first."""

    def restore(self, memory: Memory) -> None:
        """Goes on from what a checkpoint remembers, and from all rewinds that were made since it was written."""
        for decision in self.decisions:
            if decision.action == "rewind":
                memory = memory.with_rewind(decision)
        self.memory = memory

    def judge(self, step: int, rows: Span, loss: float, grad_norm: float) -> Decision | None:
        """What is to be done about a step before it is applied; None for one that does not stand out."""
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return None
        before = next((d for d in self.decisions if d.rows == rows and d.action != "rewind"), None)
        if before is not None:
            return replace(before, step=step)
        for figure, value, window in (
            ("loss", loss, self.memory.losses),
            ("grad_norm", grad_norm, self.memory.norms),
        ):
            if len(window) < self.options.warmup_steps:
                continue
            mean, deviation = spread(window)
            if value > mean + self.options.sigma * deviation:
                return Decision(step, self._action(), rows, figure, value, mean, deviation)
        return None

    def note(self, step: int, loss: float, grad_norm: float, decision: Decision | None) -> None:
        """To be told of every step that counts as done, and what was decided about it."""
        if decision is not None:
            self.memory = replace(self.memory, last_spike=step)
            if decision.action == "skip":
                self.memory = replace(self.memory, in_a_row=self.memory.in_a_row + 1)
                return
            if decision.action == "accept":
                self.memory = replace(self.memory, losses=(), norms=(), in_a_row=0)
        if math.isfinite(loss) and math.isfinite(grad_norm):
            size = self.options.window
            self.memory = replace(
                self.memory,
                losses=(*self.memory.losses, loss)[-size:],
                norms=(*self.memory.norms, grad_norm)[-size:],
                in_a_row=0,
            )

    def decided(self, decision: Decision) -> bool:
        """Keeps what was decided for the next time that the rows are read; False where it was known before."""
        if any(d.rows == decision.rows and d.action == decision.action for d in self.decisions):
            return False
        self.decisions.append(decision)
        return True

    def require_retries(self, step: int) -> None:
        """Raises UserError where going back once more is not going to help."""
        near = [rewound for rewound in self.memory.rewinds if abs(step - rewound) <= self.options.window]
        if len(near) >= self.options.retries:
            raise UserError(
                f"step {step} spikes after {len(near)} rewinds within {self.options.window} steps. The checkpoints "
                "before the spikes are kept. Lower optimizer.lr, or raise guard.retries or guard.sigma; then start "
                "again."
            )

    def healthy(self, step: int, memory: Memory) -> bool:
        """Whether a checkpoint of a step, with its memory, was written well after the spike before it."""
        return memory.last_spike is None or step - memory.last_spike >= self.options.margin

    def _action(self) -> Action:
        if self.options.action != "warn" and self.memory.in_a_row >= self.options.retries:
            return "accept"  # of a rewind, too: steps are left out where it can go nowhere
        return self.options.action


def spread(window: tuple[float, ...]) -> tuple[float, float]:
    """Mean and standard deviation, which is at least LEAST_DEVIATION of the mean."""
    mean = math.fsum(window) / len(window)
    variance = math.fsum((value - mean) ** 2 for value in window) / len(window)
    return mean, max(math.sqrt(variance), LEAST_DEVIATION * abs(mean), 1e-12)
