"""What every step of a run is: its stage, the length and number of its rows, the first of them, its learning rate.

A pure function of the run file and the step, so that resuming at any step is arithmetic. Stages and the batch's warm-up
both come down to spans: runs of steps with equally many rows of one length. Rows are counted over all ranks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from lm.data.mix import ShardCount
from lm.train.optimizer_options import OptimizerOptions, schedule_steps
from lm.train.options import TrainOptions
from lm.train.schedule import learning_rate
from lm.train.stage_options import StageOptions, stage_begins


@dataclass(frozen=True)
class RowSource:
    """Which rows are read: those of `lm.data.prepare.Prepared.stage` of these arguments."""

    index: int
    sequence_length: int
    weights: tuple[float, ...] | None
    shards: ShardCount = None

    def __str__(self) -> str:
        mix = "" if self.weights is None else f", mixed {':'.join(f'{weight:g}' for weight in self.weights)}"
        shards = "" if self.shards is None else f", {self.shards} shards"
        return f"{self.sequence_length} tokens (stage {self.index}{mix}{shards})"


@dataclass(frozen=True)
class Span:
    """Steps `first_step` to `end_step` - 1, each of `rows` rows, the first of which is `first_row` of `source`."""

    stage: int
    first_step: int
    end_step: int
    source: RowSource
    first_row: int
    rows: int
    micro_batch_size: int

    @property
    def step_tokens(self) -> int:
        """Of one step, over all ranks."""
        return self.rows * self.source.sequence_length

    @property
    def tokens(self) -> int:
        """Of all its steps."""
        return self.step_tokens * (self.end_step - self.first_step)

    @property
    def end_row(self) -> int:
        """The row of `source` behind its last one."""
        return self.first_row + self.rows * (self.end_step - self.first_step)


@dataclass(frozen=True)
class Step:
    """One step: it reads rows [first_row, first_row + rows) of `source`, over all ranks."""

    stage: int
    source: RowSource
    first_row: int
    rows: int
    micro_batch_size: int
    lr: float

    @property
    def tokens(self) -> int:
        """Over all ranks."""
        return self.rows * self.source.sequence_length


class Timeline:
    """The steps of a run.

    Attributes:
        steps: how many there are.
        spans: of all steps, in their order.
    """

    def __init__(self, train: TrainOptions, optimizer: OptimizerOptions, sequence_length: int) -> None:
        """sequence_length: of the run's rows where a stage has none of its own."""
        self.steps = train.steps
        self._optimizer = optimizer
        self._stages = train.stages or (StageOptions(),)
        self._begins = stage_begins(train.stages, train.steps)
        self.spans = tuple(_spans(train, self._stages, self._begins, sequence_length))
        self._first_steps = [span.first_step for span in self.spans]

    def __getitem__(self, step: int) -> Step:
        """What step `step` (0 <= step < steps) is."""
        span = self.spans[bisect_right(self._first_steps, step) - 1]
        first = span.first_row + (step - span.first_step) * span.rows
        return Step(span.stage, span.source, first, span.rows, span.micro_batch_size, self._lr(span.stage, step))

    @property
    def tokens(self) -> int:
        """That the whole run reads."""
        return sum(span.tokens for span in self.spans)

    @property
    def longest_row(self) -> int:
        """Tokens of the longest rows."""
        return max(span.source.sequence_length for span in self.spans)

    def longest_forward(self, readers: int) -> list[int]:
        """Tokens of the rows of the largest forward among those of the longest rows.

        readers: ranks, or groups of ranks, that share the rows of a step.
        """
        forwards = (
            (span.source.sequence_length, min(span.rows // readers, span.micro_batch_size)) for span in self.spans
        )
        length, rows = max(forwards)
        return [length] * rows

    def most_micro_batches(self, ranks: int) -> int:
        """Forwards of one rank in the step that has most of them."""
        return max(-(-span.rows // ranks // span.micro_batch_size) for span in self.spans)

    def read_before(self, step: int) -> list[str]:
        """Which rows the steps before `step` read, in words: equal for equal rows in equal steps."""
        parts: list[tuple[RowSource, int, int]] = []
        for span in self.spans:
            if span.first_step >= step:
                break
            steps = min(step, span.end_step) - span.first_step
            if parts and parts[-1][:2] == (span.source, span.rows):
                steps += parts.pop()[2]
            parts.append((span.source, span.rows, steps))
        return [f"{steps} x {rows} rows of {source}" for source, rows, steps in parts]

    def rows_before(self, step: int) -> dict[RowSource, int]:
        """How many rows of each order the steps before `step` read."""
        read: dict[RowSource, int] = {}
        for span in self.spans:
            steps = min(step, span.end_step) - span.first_step
            if steps > 0:
                read[span.source] = span.first_row + steps * span.rows
        return read

    def _lr(self, index: int, step: int) -> float:
        stage = self._stages[index]
        peak = stage.lr or self._optimizer.lr
        if stage.schedule is None:
            return learning_rate(peak, self._optimizer.schedule, step, self.steps)
        begin = self._begins[index]
        return learning_rate(peak, stage.schedule, step - begin, self._begins[index + 1] - begin)


def _spans(
    train: TrainOptions, stages: tuple[StageOptions, ...], begins: list[int], sequence_length: int
) -> Iterator[Span]:
    before: Span | None = None
    for index, stage in enumerate(stages):
        length = stage.sequence_length or sequence_length
        tokens = stage.global_batch_tokens or train.global_batch_tokens
        own = train.micro_batch_size * sequence_length // length
        span = Span(
            stage=index,
            first_step=begins[index],
            end_step=begins[index + 1],
            source=RowSource(index, length, stage.weights, stage.shards),
            first_row=0,
            rows=tokens // length,
            micro_batch_size=stage.micro_batch_size or max(1, own),
        )
        if before is not None and replace(before.source, index=index) == span.source:
            span = replace(span, source=before.source, first_row=before.end_row)  # the same rows go on
        for part in _warmed_up(span, train) if index == 0 else [span]:
            yield part
            before = part


def _warmed_up(span: Span, train: TrainOptions) -> Iterator[Span]:
    """The first stage's span, cut where its batch grows."""
    warmup = train.batch_warmup
    if warmup is None:
        yield span
        return
    steps = schedule_steps(warmup.steps, train.steps)
    increments = span.step_tokens // warmup.tokens - 1
    begins = [-(-steps * done // max(1, increments)) for done in range(increments + 1)]
    row = span.first_row
    for multiple, (begin, end) in enumerate(pairwise([*begins, span.end_step]), start=1):
        if begin < end:
            rows = warmup.tokens * multiple // span.source.sequence_length
            part = replace(span, first_step=begin, end_step=end, first_row=row, rows=rows)
            row = part.end_row
            yield part
