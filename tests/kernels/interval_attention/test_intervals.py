"""Intervals: what they accept and what they count."""

from __future__ import annotations

import pytest
import torch

from kernels.interval_attention import Intervals
from kernels.interval_attention.reference import visible


def test_pairs_count_only_visible_pairs() -> None:
    start, end = torch.tensor([[0, 0, 3, 4], [0, 1, 2, 3]]), torch.tensor([0, 2, 2, 4])
    assert Intervals(start, end, (1, 2)).pairs().tolist() == [2, 0 + 1 + 0 + 1]


def test_plans_are_made_once_and_per_group() -> None:
    intervals = Intervals(torch.zeros(2, 5, dtype=torch.int64), torch.arange(1, 6), (1, 3))
    assert intervals.plan is intervals.plan
    assert len(intervals.plan) == 2
    assert intervals.last_key == 5


def test_the_queries_that_see_a_key_are_an_interval() -> None:
    start, end = torch.tensor([[0, 0, 3, 3, 4], [0, 1, 1, 5, 6]]), torch.tensor([0, 2, 3, 4, 6])
    intervals = Intervals(start, end, (1, 2))
    seen = visible(intervals, 6)
    first, last = intervals.seen_by
    query = torch.arange(5)[:, None]
    for head, group in enumerate(intervals.group_of_head.tolist()):
        assert ((query >= first) & (query < last[group])).equal(seen[head])
    assert (first.diff() >= 0).all()
    assert (last.diff() >= 0).all()


def test_a_backends_own_view_is_built_once() -> None:
    intervals = Intervals(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([1, 2]), (1,))
    assert intervals.memo("list", list) is intervals.memo("list", list)


@pytest.mark.parametrize(
    ("start", "end", "heads", "message"),
    [
        ([[0, 1, 0]], [1, 2, 3], (1,), "must not decrease"),
        ([[0, 0, 0]], [1, 3, 2], (1,), "must not decrease"),
        ([[-1, 0, 0]], [1, 2, 3], (1,), "negative"),
        ([[0, 0]], [1, 2, 3], (1,), "must be"),
        ([[0, 0, 0]], [1, 2, 3], (1, 1), "kv_heads"),
        ([[0, 0, 0]], [1, 2, 3], (0,), "kv_heads"),
        ([[0.0, 0.0, 0.0]], [1, 2, 3], (1,), "int64"),
    ],
)
def test_rejects(start: list[list[int]], end: list[int], heads: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Intervals(torch.tensor(start), torch.tensor(end), heads)
