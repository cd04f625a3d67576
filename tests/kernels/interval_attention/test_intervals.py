"""Intervals: what they accept and what they count."""

from __future__ import annotations

import pytest
import torch

from kernels.interval_attention import Intervals


def test_pairs_count_only_visible_pairs() -> None:
    start, end = torch.tensor([[0, 0, 3, 4], [0, 1, 2, 3]]), torch.tensor([0, 2, 2, 4])
    assert Intervals(start, end, (1, 2)).pairs().tolist() == [2, 0 + 1 + 0 + 1]


def test_plans_are_made_once_and_per_group() -> None:
    intervals = Intervals(torch.zeros(2, 5, dtype=torch.int64), torch.arange(1, 6), (1, 3))
    assert intervals.plan is intervals.plan
    assert len(intervals.plan) == 2
    assert intervals.last_key == 5


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
