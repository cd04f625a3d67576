"""Which rows a run reads: all in their order, but for those that it steps over; and a hash of what it read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lm.data.batches import Batch, DocumentSpan
from lm.data.prepare import Prepared
from lm.train.timeline import Timeline

Span = tuple[int, int]
"""Rows [first, end) of the order."""
HALF = 1 << 32
STRIDE = 1 << 48
"""More rows than any stage reads: its order's rows are numbered from a multiple of this on."""


@dataclass(frozen=True)
class Reading:
    """Who reads what in a step: a pure function of the step, in numbers of the run's rows.

    rank: of the `ranks` that read rows of their own.
    """

    timeline: Timeline
    rank: int
    ranks: int

    def all(self, step: int) -> Span:
        """The rows of all ranks."""
        now = self.timeline[step]
        first = now.source.index * STRIDE + now.first_row
        return first, first + now.rows

    def mine(self, step: int, row: Callable[[int], int]) -> list[list[int]]:
        """The rows of the order for each forward of this rank, whereto `row` takes the run's."""
        now = self.timeline[step]
        count, size = now.rows // self.ranks, now.micro_batch_size
        first = self.all(step)[0] + self.rank * count
        rows = [row(number) for number in range(first, first + count)]
        return [rows[begin : begin + size] for begin in range(0, count, size)]


class RunRows:
    """The rows of a run by their numbers: those of a stage's order count from a multiple of STRIDE on.

    parts: fingerprints of what is read beyond `Prepared.parts`, by name.
    """

    def __init__(self, prepared: Prepared, timeline: Timeline) -> None:
        """Raises UserError where a stage cannot have its rows."""
        self._spans = timeline.spans
        sources = {span.source for span in timeline.spans}
        self._batches = {s.index: prepared.stage(s.index, s.sequence_length, s.weights, s.shards) for s in sources}
        self.parts = {name: part for s in sources for name, part in prepared.parts_of(s.shards).items()}

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Rows of one stage's order."""
        return self._batches[numbers[0] // STRIDE].rows(number % STRIDE for number in numbers)

    def documents(self, number: int) -> list[DocumentSpan]:
        """What a row consists of; see `Batches.documents`."""
        return self._batches[number // STRIDE].documents(number % STRIDE)

    def steps_given(self, stepped_over: Sequence[Span]) -> int | None:
        """For how many of the run's steps there are rows; None: for all. stepped_over: of those that there are."""
        for span in self._spans:
            given = self._batches[span.source.index].order.num_rows
            if given is None:
                continue
            left = given - sum(end - first for first, end in stepped_over if first // STRIDE == span.source.index)
            if span.end_row > left:
                return span.first_step + max(0, left - span.first_row) // span.rows
        return None


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same rows in spans that do not touch, in ascending order."""
    result: list[Span] = []
    for first, end in sorted(spans):
        if result and first <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((first, end))
    return tuple(result)


def row_read(number: int, stepped_over: Sequence[Span]) -> int:
    """The row of the order that a run reads as its row `number`. stepped_over: as `joined` gives them."""
    stage = number // STRIDE
    for first, end in stepped_over:
        if number < first:
            break
        if first // STRIDE == stage:
            number += end - first
    return number


def step_hash(rows: Sequence[Sequence[int]], batches: Sequence[Batch]) -> list[int]:
    """Two halves of 32 bits for what one rank reads in a step, to be added over ranks; see `hash_text`.

    rows: the numbers of each batch's rows. The sum does not depend on who read which.
    """
    hashes = [batch_hash(numbers, batch) for numbers, batch in zip(rows, batches, strict=True)]
    return [sum(halves) % HALF for halves in zip(*hashes, strict=True)]


def batch_hash(rows: Sequence[int], batch: Batch) -> list[int]:
    """Two halves of 32 bits for one batch."""
    length = batch.tokens.shape[1]
    high = low = 0
    starts = _document_starts(batch.lengths, length, len(rows))
    for number, tokens, targets, documents in zip(
        rows, batch.tokens.numpy(), batch.targets.numpy(), starts, strict=True
    ):
        digest = hashlib.blake2b(f"{number}:{documents}:".encode(), digest_size=8)
        digest.update(tokens.tobytes())
        digest.update(targets.tobytes())
        value = int.from_bytes(digest.digest(), "little")
        high, low = (high + value // HALF) % HALF, (low + value % HALF) % HALF
    return [high, low]


def hash_text(halves: Sequence[float]) -> str:
    """16 hex digits for the summed halves, which are whole and below 2^53."""
    high, low = (int(half) % HALF for half in halves)
    return f"{high:08x}{low:08x}"


def _document_starts(lengths: Sequence[int], row_length: int, rows: int) -> list[list[int]]:
    starts: list[list[int]] = [[] for _ in range(rows)]
    position = 0
    for length in lengths:
        starts[position // row_length].append(position % row_length)
        position += length
    return starts
