"""Turns intervals into calls of variable-length flash attention, one for each group of heads.

Such a call takes sequences of queries and sequences of keys, laid end to end. The last query of a sequence sees its
last key, the one before it the last but one, and each sees everything before that or the last `window` keys. Whole
documents, windows and groups are that as they stand. The final states that RAT attends to move on by one key for a
whole chunk of queries, so the queries of a chunk become further heads of one row; queries that see nothing and keys
that nobody sees are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from kernels.interval_attention.intervals import Intervals
from kernels.interval_attention.plan import Bounds

MAX_WASTE = 2  # places of a call over all queries
PADDING = 128  # rows that FlashAttention-2's backward adds to each sequence, in the float32 gradient that it sums in
MAX_PADDED = 3  # places of a part with their padding, over all queries or MIN_QUERIES, whichever is more
MIN_QUERIES = 4096


@dataclass(frozen=True, eq=False)
class VarlenCall:
    """One call for one group of heads.

    pack: queries that share one row as further heads. places: [rows * pack] int64, the query in each place, and real:
    as many bool, False where a place only fills up its row; None where the queries in their order are the places.
    keys: [K] int64, the keys in use; None where all are.
    cu_rows, cu_keys: [B + 1] int32, where sequences begin and end. max_rows, max_keys: the longest ones.
    window: how many keys a row sees at most; None is no limit.
    parts: calls that do the same, for a backward whose padding would take much memory; empty where one call will do.
    """

    pack: int
    places: Tensor | None
    real: Tensor | None
    keys: Tensor | None
    cu_rows: Tensor
    cu_keys: Tensor
    max_rows: int
    max_keys: int
    window: int | None
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the sequences of a call: its rows and keys, and the call that takes them."""

    rows: slice
    keys: slice
    call: VarlenCall


def plan_calls(intervals: Intervals, num_keys: int) -> list[VarlenCall | None]:
    """For each group of heads its call, None where no query sees anything. Raises ValueError where no call fits."""
    starts, end = intervals.start.cpu().numpy(), intervals.end.cpu().numpy()
    return [_plan_group(start, end, num_keys, intervals.end.device) for start in starts]


def _plan_group(start: Bounds, end: Bounds, num_keys: int, device: torch.device) -> VarlenCall | None:
    seeing = np.flatnonzero(end > start)
    if not len(seeing):
        return None
    num_queries, start, end = len(end), start[seeing], end[seeing]
    row_starts = np.flatnonzero(np.r_[True, (np.diff(start) != 0) | (np.diff(end) != 0)])
    row_sizes = np.diff(np.r_[row_starts, len(seeing)])
    pack = int(row_sizes.max())
    if pack * len(row_starts) > MAX_WASTE * num_queries:
        raise ValueError("some keys are seen by many more queries than others")
    start, end = start[row_starts], end[row_starts]
    firsts = _sequences(start, end)
    cu_rows = np.r_[firsts, len(start)]
    first_keys, stop_keys = start[firsts], end[cu_rows[1:] - 1]
    cu_keys = np.r_[0, np.cumsum(stop_keys - first_keys)]
    place = np.arange(pack)
    places = seeing[row_starts[:, None] + np.minimum(place, row_sizes[:, None] - 1)].ravel()
    in_order = len(places) == num_queries and bool((places == np.arange(num_queries)).all())

    def tensor(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(device)

    whole = _call(cu_rows, cu_keys, _window(start, end, firsts), device)
    return replace(
        whole,
        pack=pack,
        places=None if in_order else tensor(places),
        real=None if in_order else tensor((place < row_sizes[:, None]).ravel()),
        keys=None if cu_keys[-1] == num_keys else tensor(np.r_[*map(np.arange, first_keys, stop_keys)]),
        parts=_parts(cu_rows, cu_keys, MAX_PADDED * max(num_queries, MIN_QUERIES) / pack, whole),
    )


def _call(cu_rows: Bounds, cu_keys: Bounds, window: int | None, device: torch.device) -> VarlenCall:
    rows, keys = (torch.from_numpy(bounds.astype(np.int32)).to(device) for bounds in (cu_rows, cu_keys))
    return VarlenCall(1, None, None, None, rows, keys, int(np.diff(cu_rows).max()), int(np.diff(cu_keys).max()), window)


def _parts(cu_rows: Bounds, cu_keys: Bounds, max_padded: float, whole: VarlenCall) -> tuple[Part, ...]:
    """Parts of about equally many rows, padding included, and as few as may be of `max_padded` and one sequence."""
    padded = cu_rows + PADDING * np.arange(len(cu_rows))
    count = math.ceil(padded[-1] / max_padded)
    cuts = np.unique(np.searchsorted(padded, np.linspace(0, padded[-1], count + 1)))
    if len(cuts) == 2:
        return ()
    return tuple(
        Part(
            slice(int(cu_rows[a]), int(cu_rows[b])),
            slice(int(cu_keys[a]), int(cu_keys[b])),
            _call(cu_rows[a : b + 1] - cu_rows[a], cu_keys[a : b + 1] - cu_keys[a], whole.window, whole.cu_rows.device),
        )
        for a, b in pairwise(cuts)
    )


def _sequences(start: Bounds, end: Bounds) -> Bounds:
    """The first row of each sequence: where the keys of the row before it are left behind."""
    left = start[1:] >= end[:-1]
    follows = (np.diff(end) == 1) & (np.diff(start) <= 1)
    if not (left | follows).all():
        raise ValueError("some intervals neither move on by one key nor leave the keys before them")
    return np.concatenate([[0], np.flatnonzero(left) + 1])


def _window(start: Bounds, end: Bounds, firsts: Bounds) -> int | None:
    """The largest number of keys that a row sees, where that is what moves the starts of intervals; else None."""
    sequence_start = np.repeat(start[firsts], np.diff(np.r_[firsts, len(start)]))
    if (start == sequence_start).all():
        return None
    window = int((end - start)[start != sequence_start].max())
    if not (start == np.maximum(sequence_start, end - window)).all():
        raise ValueError(f"some intervals move on before they hold the window's {window} keys")
    return window
