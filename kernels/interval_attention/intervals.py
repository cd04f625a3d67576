"""Which keys each query sees: one contiguous interval per query and group of heads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor

from kernels.interval_attention.plan import Piece, plan_pieces

BuiltT = TypeVar("BuiltT")


@dataclass(frozen=True, eq=False)
class Intervals:
    """Query n of the key/value heads in group s sees keys [start[s, n], end[n]), none where end <= start.

    start: [S, N] int64, non-decreasing in n, >= 0. end: [N] int64, non-decreasing, 0 <= end <= number of keys.
    kv_heads: how many key/value heads each of the S groups has, in head order. parts_of: where a call has a part of a
    layer's heads, the layer's key/value heads that see what those of each group do; for whoever tells of them.
    Make one object per kind of layer and batch: the block plans are cached on it and shared by all its layers.
    Raises ValueError when shapes, types or the order of the bounds are wrong.
    """

    start: Tensor
    end: Tensor
    kv_heads: tuple[int, ...]
    parts_of: tuple[range, ...] = ()
    _memo: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        start, end = self.start, self.end
        if start.dim() != 2 or end.dim() != 1 or start.shape[1] != end.shape[0]:
            raise ValueError(f"start must be [S, N] and end [N]; got {tuple(start.shape)} and {tuple(end.shape)}")
        if start.dtype != torch.int64 or end.dtype != torch.int64:
            raise ValueError(f"start and end must be int64; got {start.dtype} and {end.dtype}")
        if len(self.kv_heads) != start.shape[0] or min(self.kv_heads, default=0) < 1:
            raise ValueError(
                f"kv_heads must name at least one head for each of {start.shape[0]} groups: {self.kv_heads}"
            )
        if end.shape[0] == 0:
            return
        if int(start.min()) < 0 or int(end.min()) < 0:
            raise ValueError("start and end must not be negative")
        if bool((start.diff(dim=1) < 0).any()) or bool((end.diff() < 0).any()):
            raise ValueError("start and end must not decrease from one query to the next")

    @property
    def num_queries(self) -> int:
        return self.end.shape[0]

    @cached_property
    def last_key(self) -> int:
        """The largest end: attention needs at least this many keys."""
        return int(self.end[-1]) if self.num_queries else 0

    @cached_property
    def group_of_head(self) -> Tensor:
        """[G] int64: the group of each key/value head."""
        groups = torch.arange(len(self.kv_heads)).repeat_interleave(torch.tensor(self.kv_heads))
        return groups.to(self.end.device)

    @cached_property
    def seen_by(self) -> tuple[Tensor, Tensor]:
        """([K], [S, K]) int64, K = last_key: key m is seen by queries [first[m], last[s, m]) of group s, if any.

        Neither bound of a query decreases, so the queries that see a key are an interval too, and neither bound of
        that one decreases.
        """
        keys = torch.arange(self.last_key, device=self.end.device)
        first = torch.searchsorted(self.end, keys, right=True)
        last = torch.searchsorted(self.start.contiguous(), keys.repeat(len(self.kv_heads), 1), right=True)
        return first, last

    def memo(self, key: str, build: Callable[[], BuiltT]) -> BuiltT:
        """What `build` gave the first time for this key: a backend's own view of the intervals."""
        if key not in self._memo:
            self._memo[key] = build()
        value: BuiltT = self._memo[key]
        return value

    def pairs(self) -> Tensor:
        """[S] int64: how many (query, key) pairs one head of each group computes."""
        return (self.end - self.start).clamp_min(0).sum(dim=1)

    @cached_property
    def plan(self) -> tuple[list[Piece], ...]:
        """For each group its pieces, causal triangles left whole: for kernels that skip a triangle's empty half."""
        return self._plans(whole_triangles=True)

    @cached_property
    def bounded_plan(self) -> tuple[list[Piece], ...]:
        """For each group its pieces, no piece with more rows than a block: for kernels that hold a piece's scores."""
        return self._plans(whole_triangles=False)

    def _plans(self, whole_triangles: bool) -> tuple[list[Piece], ...]:
        starts, end = self.start.cpu().numpy(), self.end.cpu().numpy()
        return tuple(plan_pieces(start, end, whole_triangles) for start in starts)
