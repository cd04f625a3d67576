"""Calls of flash attention: sequences, windows and shared rows as they are counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.interval_attention import Intervals
from kernels.interval_attention.flash_plan import VarlenCall, plan_calls


def plan(start: list[int], end: list[int], num_keys: int) -> VarlenCall | None:
    (call,) = plan_calls(Intervals(torch.tensor([start]), torch.tensor(end), (1,)), num_keys)
    return call


def listed(x: Tensor | None) -> list[int] | None:
    return None if x is None else x.tolist()


def test_documents_are_sequences_without_a_copy() -> None:
    call = plan([0, 0, 0, 3, 4, 4], [1, 2, 3, 4, 5, 6], 6)
    assert call is not None
    assert (call.pack, call.places, call.real, call.keys, call.window) == (1, None, None, None, None)
    assert call.cu_rows.tolist() == call.cu_keys.tolist() == [0, 3, 4, 6]
    assert (call.max_rows, call.max_keys, call.cu_rows.dtype) == (3, 3, torch.int32)


def test_a_window_is_found_beside_documents_too_short_for_it() -> None:
    call = plan([0, 0, 1, 2, 4, 4], [1, 2, 3, 4, 5, 6], 6)
    assert call is not None
    assert (call.window, call.cu_rows.tolist()) == (2, [0, 4, 6])


def test_chunks_share_rows_and_the_unseen_is_left_out() -> None:
    """Two documents of 7 and 2 tokens, and one of 6, in chunks of 2: finals 0-2, 3, 4-6."""
    start = [0] * 7 + [3] * 2 + [4] * 6
    end = [0, 0, 1, 1, 2, 2, 3, 3, 3, 4, 4, 5, 5, 6, 6]
    call = plan(start, end, 7)
    assert call is not None
    assert call.pack == 2
    assert listed(call.places) == [2, 3, 4, 5, 6, 6, 11, 12, 13, 14]
    assert listed(call.real) == [True] * 5 + [False] + [True] * 4
    assert listed(call.keys) == [0, 1, 2, 4, 5]
    assert call.cu_rows.tolist() == call.cu_keys.tolist() == [0, 3, 5]


def test_keys_from_a_cache_come_before_the_first_query() -> None:
    call = plan([1, 1, 1], [5, 6, 7], 7)
    assert call is not None
    assert listed(call.keys) == [1, 2, 3, 4, 5, 6]
    assert (call.max_rows, call.max_keys) == (3, 6)


def test_nothing_to_see_is_no_call() -> None:
    assert plan([0, 0], [0, 0], 3) is None


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ([0, 0, 0], [1, 3, 4], "neither move on by one key"),
        ([0, 2, 2], [3, 4, 5], "neither move on by one key"),
        ([0, 1, 1, 2], [2, 3, 4, 5], "move on before they hold the window's 3 keys"),
        ([0, 0, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 2, 3, 4], "seen by many more queries"),
    ],
)
def test_what_fits_no_call_is_said(start: list[int], end: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(start, end, 9)
