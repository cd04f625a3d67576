"""Rows that are read, stepped over and hashed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from lm.data.batches import Batch
from lm.train.optimizer_options import OptimizerOptions
from lm.train.options import TrainOptions
from lm.train.rows_read import HALF, STRIDE, Reading, RunRows, hash_text, joined, row_read, step_hash
from lm.train.timeline import Timeline

SPANS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)).map(lambda pair: (pair[0], sum(pair))), max_size=5)


@given(SPANS, st.integers(1, 60))
def test_what_is_stepped_over_is_never_read_and_the_rest_is_in_its_order(
    spans: list[tuple[int, int]], count: int
) -> None:
    stepped_over = {row for first, end in spans for row in range(first, end)}
    expected = [row for row in range(count + 60) if row not in stepped_over][:count]
    assert [row_read(number, joined(spans)) for number in range(count)] == expected


@given(st.sampled_from([(1, 6), (2, 3), (3, 2), (6, 1)]), st.integers(1, 4), st.integers(0, 5))
def test_ranks_together_read_each_row_once(shape: tuple[int, int], size: int, step: int) -> None:
    ranks, rows = shape
    timeline = Timeline(
        TrainOptions(output_dir=Path("unused"), steps=10, global_batch_tokens=6, micro_batch_size=size),
        OptimizerOptions(lr=1.0),
        sequence_length=1,
    )
    assert rows * ranks == 6
    read = [
        row
        for rank in range(ranks)
        for forward in Reading(timeline, rank, ranks).mine(step, lambda number: number)
        for row in forward
    ]
    assert read == list(range(6 * step, 6 * step + 6)) == list(range(*Reading(timeline, 0, ranks).all(step)))


def test_what_is_stepped_over_in_one_stage_is_read_in_the_next() -> None:
    stepped_over = [(3, 5), (STRIDE + 1, STRIDE + 2)]
    assert [row_read(number, stepped_over) for number in (2, 3, 9)] == [2, 5, 11]
    assert [row_read(STRIDE + number, stepped_over) - STRIDE for number in (0, 1, 7)] == [0, 2, 8]
    assert row_read(2 * STRIDE + 4, stepped_over) == 2 * STRIDE + 4


@given(SPANS, st.integers(60, 90), st.none() | st.integers(60, 90), st.booleans())
def test_there_are_rows_for_as_many_steps_as_can_be_read(
    spans: list[tuple[int, int]], first_given: int, second_given: int | None, same_rows: bool
) -> None:
    """Two stages of 10 steps, of 6 and 3 rows; the rows stepped over are some of either."""
    second = {"global_batch_tokens": 3} if same_rows else {"global_batch_tokens": 9, "sequence_length": 3}
    values = {"output_dir": "unused", "steps": 20, "global_batch_tokens": 6, "stages": [{"steps": 10}, second]}
    timeline = Timeline(TrainOptions.model_validate(values), OptimizerOptions(lr=1.0), sequence_length=1)
    given = (first_given, second_given)

    def stage(index: int, *_: Any) -> Any:
        return SimpleNamespace(order=SimpleNamespace(num_rows=given[index]))

    prepared: Any = SimpleNamespace(stage=stage, parts_of=lambda shards: {})
    stepped_over = joined([*spans, *((STRIDE + first, STRIDE + end) for first, end in spans)])
    reading = Reading(timeline, 0, 1)

    def readable(step: int) -> bool:
        numbers = range(*reading.all(step))
        limit = given[numbers[0] // STRIDE]
        return limit is None or all(row_read(number, stepped_over) % STRIDE < limit for number in numbers)

    missing = next((step for step in range(20) if not readable(step)), None)
    assert RunRows(prepared, timeline).steps_given(stepped_over) == missing


def batch(rows: list[int], lengths: list[int]) -> Batch:
    tokens = torch.tensor([[row * 10 + column for column in range(4)] for row in rows])
    return Batch(tokens, tokens + 1, lengths, [0] * len(lengths))


def hashed(*batches: tuple[list[int], list[int]]) -> str:
    return hash_text(step_hash([rows for rows, _ in batches], [batch(*b) for b in batches]))


def test_the_hash_is_of_the_rows_whoever_reads_them() -> None:
    whole = hashed(([0, 1, 2], [4, 1, 3, 4]))
    assert hashed(([0, 1], [4, 1, 3]), ([2], [4])) == whole
    parts = [step_hash([[row]], [batch([row], lengths)]) for row, lengths in ((0, [4]), (1, [1, 3]), (2, [4]))]
    assert hash_text([sum(halves) for halves in zip(*parts, strict=True)]) == whole
    assert all(half < HALF for half in parts[0])


def test_the_hash_tells_rows_tokens_and_documents_apart() -> None:
    found = [hashed(([0, 1], [4, 4])), hashed(([1, 0], [4, 4])), hashed(([0, 1], [4, 2, 2])), hashed(([0, 2], [4, 4]))]
    assert found[0] == found[1]  # the same rows
    assert len(set(found)) == 3
