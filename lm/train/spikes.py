"""What the guard decides about a spike, done: said, written down, left out, or gone back from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lm.errors import UserError
from lm.train import manifest
from lm.train.checkpoint import Counters
from lm.train.distributed import World
from lm.train.engine import StepResult
from lm.train.guard import Decision, Guard, Memory
from lm.train.guard_options import GuardOptions
from lm.train.journal import Journal
from lm.train.rows_read import STRIDE, RunRows, Span, row_read
from lm.train.saving import Saving, found


class Spikes:
    """The guard of one run, on all ranks. Methods are collective."""

    def __init__(
        self, options: GuardOptions, root: Path, saving: Saving, world: World, say: Callable[[str], None]
    ) -> None:
        """root: the run's folder. Raises UserError for a journal that cannot be read."""
        self._journal = Journal(root, world)
        self._saving = saving
        self._world = world
        self._say = say
        self._decision: Decision | None = None
        self.guard = Guard(options, self._journal.read())

    def drop_abandoned(self) -> None:
        """Removes checkpoints of steps that were gone back from; to be called before one is chosen to go on from."""
        rewinds = [decision for decision in self.guard.decisions if decision.action == "rewind"]

        def work() -> None:
            for folder, counters in found(self._saving.root, self._say).items():
                memory = Memory.from_json(counters.guard)
                if any(not memory.knows(d) and counters.step > (d.checkpoint or 0) for d in rewinds):
                    manifest.remove(folder)

        if rewinds:
            self._world.on_rank_zero(work)

    def restore(self, counters: Counters) -> Counters:
        """Goes on from what a checkpoint remembers; its counters, with the rewinds made since it was written."""
        memory = Memory.from_json(counters.guard)
        self.guard.restore(memory)
        return replace(counters, spikes=counters.spikes + len(self.guard.memory.rewinds) - len(memory.rewinds))

    def require_rows(self, rows: RunRows, key: str) -> None:
        """Raises UserError, on all ranks alike, where the rows stepped over are missed before the end of the run.

        key: where a person sets the run's steps.
        """
        steps = rows.steps_given(self.guard.memory.stepped_over)
        if steps is not None:
            raise UserError(
                f"{key}: the guard stepped over rows, and with their max_epochs data.sources give no others in their "
                f"place: there are rows for {steps:,} steps. Set {key} to {steps} at most."
            )

    def row(self, number: int) -> int:
        """The row of the order that the run reads as its row `number`."""
        return row_read(number, self.guard.memory.stepped_over)

    def span(self, rows: Span) -> Span:
        """The same for the first and the last of several rows."""
        return self.row(rows[0]), self.row(rows[1] - 1) + 1

    def accept(self, step: int, rows: Span) -> Callable[[float, float], bool]:
        """To be asked about a step, counted from 1, that reads `rows` of the run: told loss and gradient norm."""
        self._decision = None
        span = self.span(rows)

        def accept(loss: float, grad_norm: float) -> bool:
            self._decision = self.guard.judge(step, span, loss, grad_norm)
            return self._decision is None or self._decision.action in ("warn", "accept")

        return accept

    def settle(self, step: int, result: StepResult, rows: RunRows, rows_of: Callable[[int], Span]) -> Decision | None:
        """Does what was decided about the step that `accept` was asked about, and returns it; None where nothing was.

        rows_of: the rows of the run that a step reads, counted from 0. After a rewind the run must be put back to the
        decision's checkpoint.
        """
        decision = self._decision
        if decision is not None:
            named = {span.document for row in range(*decision.rows) for span in rows.documents(row)}
            decision = replace(decision, documents=tuple(sorted(named)))
            if decision.action == "rewind":
                decision = self._where_to(decision, rows, rows_of)
            if self.guard.decided(decision):
                self._journal.write(decision)
                self._say(str(decision))
            if decision.action == "rewind":
                self.drop_abandoned()
                return decision
        self.guard.note(step, result.loss, result.grad_norm, decision)
        return decision

    def _where_to(self, decision: Decision, rows: RunRows, rows_of: Callable[[int], Span]) -> Decision:
        """The decision with the checkpoint to go back to; leaves the step out where there is none, or no other rows."""
        self.guard.require_retries(decision.step)
        self._saving.settle()
        margin = self.guard.options.margin
        target = self._target(decision.step, margin) or self._target(decision.step, 0)
        if target is None:
            return replace(decision, action="skip", reason="there is no healthy checkpoint to go back to")
        # What is stepped over lies in one stage's rows; those of a stage before it are read again.
        first = max(self.row(rows_of(target)[0]), decision.rows[0] // STRIDE * STRIDE)
        rewind = replace(decision, checkpoint=target, stepped_over=(first, decision.rows[1]))
        if rows.steps_given(self.guard.memory.with_rewind(rewind).stepped_over) is not None:
            reason = f"max_epochs leave no rows in place of those since step {target}, to which the run would go back"
            return replace(decision, action="skip", reason=reason)
        return rewind

    def _target(self, step: int, margin: int) -> int | None:
        """The step of the newest healthy checkpoint that lies `margin` steps before a spike. Collective."""

        def healthy() -> list[tuple[Path, int]]:
            return [
                (folder, counters.step)
                for folder, counters in found(self._saving.root, self._say).items()
                if counters.step < step - margin and self.guard.healthy(counters.step, Memory.from_json(counters.guard))
            ]

        good = (at for folder, at in self._world.on_rank_zero(healthy) if self._saving.is_good(folder))
        return next(good, None)
