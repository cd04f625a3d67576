"""Cuts the (query, key) pairs of one group of heads into rectangles that a dense attention kernel can run.

Three shapes suffice: a rectangle that is seen whole, a causal triangle, and a small rectangle with a mask. Rectangles
that look alike and lie at equal distances (the blocks of a sliding window, equal groups, equal documents) become one
piece that runs as one batch.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Bounds = npt.NDArray[np.int64]

MIN_TRIANGLE = 2048  # rows; blocks waste less on shorter causal runs than the kernel does on its own
MIN_BLOCK, MAX_BLOCK = 32, 512  # rows
MAX_JUMP = 64  # a block ends where its interval jumps further than this
MIN_INTERIOR = 2048  # keys seen by a whole block before leaving their mask away pays for merging
MAX_BATCH_KEYS = 1024  # bounds the key gradients that a batched piece holds at once: fresh memory is slow
MASK_BUDGET = 4 * 2**20  # mask entries kept by a plan; further masks are rebuilt at each use


@dataclass(eq=False)
class Pattern:
    """A mask relative to its rectangle: row i sees columns [start[i], end[i])."""

    start: Tensor
    end: Tensor
    num_keys: int
    keep: bool = False
    _kept: dict[tuple[torch.dtype, torch.device], tuple[Tensor, Tensor | None]] = field(default_factory=dict)

    def bias(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """([rows, keys] of 0 and -inf, [rows] bool: rows that see nothing, None if there are none)."""
        if (dtype, device) in self._kept:
            return self._kept[dtype, device]
        start, end = self.start.to(device), self.end.to(device)
        column = torch.arange(self.num_keys, device=device)
        hidden = (column < start[:, None]) | (column >= end[:, None])
        blind = end <= start if bool((self.end <= self.start).any()) else None
        built = (torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf), blind)
        if self.keep:
            self._kept[dtype, device] = built
        return built


@dataclass(frozen=True, eq=False)
class Piece:
    """`count` equal rectangles: the i-th has rows first_row + i*row_step and keys first_key + i*key_step onwards."""

    first_row: int
    num_rows: int
    row_step: int
    first_key: int
    num_keys: int
    key_step: int
    count: int
    causal: bool  # row i sees keys 0..i of the rectangle
    pattern: Pattern | None
    fresh: bool  # nothing was written to these rows before


class _Rectangle(NamedTuple):
    row: int
    num_rows: int
    key: int
    num_keys: int
    causal: bool
    pattern: bytes  # the relative bounds, empty when there is no mask
    fresh: bool


def plan_pieces(start: Bounds, end: Bounds, whole_triangles: bool) -> list[Piece]:
    """The pieces of one group of heads, in the order they must run. start, end: [N] int64, non-decreasing."""
    alike: dict[tuple[Any, ...], list[_Rectangle]] = defaultdict(list)
    for rectangle in _rectangles(start, end, whole_triangles):
        alike[rectangle.fresh, rectangle.num_rows, rectangle.num_keys, rectangle.causal, rectangle.pattern].append(
            rectangle
        )
    pieces: list[Piece] = []
    uses: Counter[Pattern] = Counter()
    patterns: dict[tuple[bytes, int], Pattern] = {}
    for group in alike.values():
        pattern = _pattern(group[0], patterns)
        if pattern is not None:
            uses[pattern] += len(group)
        pieces.extend(_batches(group, pattern))
    budget = MASK_BUDGET
    for pattern, _ in uses.most_common():
        budget -= pattern.num_keys * len(pattern.start)
        pattern.keep = budget >= 0
    return sorted(pieces, key=lambda piece: not piece.fresh)


def _pattern(rectangle: _Rectangle, patterns: dict[tuple[bytes, int], Pattern]) -> Pattern | None:
    if not rectangle.pattern:
        return None
    key = rectangle.pattern, rectangle.num_keys
    if key not in patterns:
        start, end = torch.from_numpy(np.frombuffer(rectangle.pattern, np.int64).reshape(2, -1).copy())
        patterns[key] = Pattern(start, end, rectangle.num_keys)
    return patterns[key]


def _batches(group: list[_Rectangle], pattern: Pattern | None) -> Iterator[Piece]:
    """Joins rectangles of one look that follow each other at equal distances."""
    limit = max(1, MAX_BATCH_KEYS // group[0].num_keys)
    i = 0
    while i < len(group):
        first, count, row_step, key_step = group[i], 1, 0, 0
        if i + 1 < len(group):
            row_step, key_step = group[i + 1].row - first.row, group[i + 1].key - first.key
        while (
            key_step > 0
            and count < limit
            and i + count < len(group)
            and group[i + count].row == first.row + count * row_step
            and group[i + count].key == first.key + count * key_step
        ):
            count += 1
        yield Piece(
            first.row,
            first.num_rows,
            row_step,
            first.key,
            first.num_keys,
            key_step,
            count,
            first.causal,
            pattern,
            first.fresh,
        )
        i += count


def _rectangles(start: Bounds, end: Bounds, whole_triangles: bool) -> Iterator[_Rectangle]:
    row = 0
    for first, stop in _triangles(start, end) if whole_triangles else ():
        yield from _blocks(start, end, row, first)
        key, diagonal = int(start[first]), int(end[first]) - 1
        if diagonal > key:
            yield _Rectangle(first, stop - first, key, diagonal - key, False, b"", True)
        yield _Rectangle(first, stop - first, diagonal, stop - first, True, b"", diagonal == key)
        row = stop
    yield from _blocks(start, end, row, len(end))


def _triangles(start: Bounds, end: Bounds) -> Iterator[tuple[int, int]]:
    """Row ranges where the start stays, the end moves by one key a row, and the first row sees something."""
    breaks = np.flatnonzero((np.diff(start) != 0) | (np.diff(end) != 1)) + 1
    edges = np.concatenate([[0], breaks, [len(end)]])
    long = np.flatnonzero(np.diff(edges) >= MIN_TRIANGLE)
    for first, stop in zip(edges[long].tolist(), edges[long + 1].tolist(), strict=True):
        if end[first] > start[first]:
            yield first, stop


def _blocks(start: Bounds, end: Bounds, first: int, stop: int) -> Iterator[_Rectangle]:
    """Blocks of rows in [first, stop), none of which holds a jump."""
    jumps = (np.diff(start[first:stop]) > MAX_JUMP) | (np.diff(end[first:stop]) > MAX_JUMP)
    edges = [first, *(np.flatnonzero(jumps) + first + 1).tolist(), stop]
    for lower, upper in pairwise(edges):
        if upper > lower:
            rows = _block_rows(start[lower:upper], end[lower:upper])
            for row in range(lower, upper, rows):
                block = slice(row, min(row + rows, upper))
                yield from _block(start[block], end[block], row)


def _block_rows(start: Bounds, end: Bounds) -> int:
    """Wide intervals and slowly moving ones get tall blocks: the edges of a block are computed in vain."""
    width = float(np.maximum(end - start, 0).mean())
    drift = float(end[-1] - end[0] + start[-1] - start[0]) / len(end)
    ideal = width / max(4 * drift, 1e-9)
    return int(min(max(2 ** round(np.log2(max(ideal, 1.0))), MIN_BLOCK), MAX_BLOCK))


def _block(start: Bounds, end: Bounds, row: int) -> Iterator[_Rectangle]:
    """One block: its keys in one masked rectangle or, when most are seen by all rows, in a whole one and two edges."""
    rows, lowest, highest = len(start), int(start[0]), int(end[-1])
    inner, outer = int(start[-1]), int(end[0])
    if highest <= lowest:
        return
    if outer - inner < MIN_INTERIOR and (inner > lowest or highest > outer):
        yield _Rectangle(row, rows, lowest, highest - lowest, False, _relative(start, end, lowest, highest), True)
        return
    yield _Rectangle(row, rows, inner, outer - inner, False, b"", True)
    if inner > lowest:
        yield _Rectangle(row, rows, lowest, inner - lowest, False, _relative(start, end, lowest, inner), False)
    if highest > outer:
        yield _Rectangle(row, rows, outer, highest - outer, False, _relative(start, end, outer, highest), False)


def _relative(start: Bounds, end: Bounds, lowest: int, highest: int) -> bytes:
    return np.concatenate([start.clip(lowest, highest) - lowest, end.clip(lowest, highest) - lowest]).tobytes()
