"""Rows that change hands between ranks which hold one sequence together, one contiguous share each.

Everything is one operation, `all_to_all` of rows, whose backward sends every gradient the way its row came: the exact
transpose. What a rank gives to several others is copied by slicing and joining, so the gradients that come back for a
row add up where it is owned. Summed over ranks, the gradients of weights are therefore those of one rank with the whole
sequence, without any factor.

All ranks must make the same calls in the same order, backward included: what comes back must be used on every rank,
even where it has no rows, since a rank whose graph has lost the call would leave the others waiting.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """The ranks of a process group, seen from rank number `rank` of them; works over gloo and NCCL."""

    group: dist.ProcessGroup
    rank: int
    size: int


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, rows: Tensor, send: list[int], receive: list[int], ranks: Ranks
    ) -> Tensor:
        ctx.send, ctx.receive, ctx.ranks = send, receive, ranks
        out = rows.new_empty(sum(receive), *rows.shape[1:])
        dist.all_to_all_single(out, rows.contiguous(), receive, send, group=ranks.group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return all_to_all(grad, ctx.receive, ctx.send, ctx.ranks), None, None, None


def all_to_all(rows: Tensor, send: Sequence[int], receive: Sequence[int], ranks: Ranks) -> Tensor:
    """Sends the first `send[0]` rows to rank 0, the next `send[1]` to rank 1, and so on. Collective.

    rows: [sum(send), ...]. Returns [sum(receive), ...]: `receive[0]` rows of rank 0, and so on; every rank must expect
    what the others send it.
    """
    out: Tensor = _AllToAll.apply(rows, list(send), list(receive), ranks)  # type: ignore[no-untyped-call]
    return out


def fetch(tensors: Sequence[Tensor], owned: Sequence[int], first: Sequence[int], ranks: Ranks) -> tuple[Tensor, ...]:
    """Joins rows of the ranks before with this rank's own. Collective where any rank needs any.

    tensors: each [n, ...] of one dtype, rows owned[rank] to owned[rank + 1] of a list that the ranks hold together.
    owned: [ranks + 1], the same on all ranks. first: [ranks], the first row that each needs, not behind its own.
    Returns rows first[rank] to owned[rank + 1] of each.
    """
    if all(need == own for need, own in zip(first, owned, strict=False)):
        return tuple(tensors)
    me = ranks.rank
    begin, end = owned[me], owned[me + 1]
    send = [range(max(first[rank], begin), end) if rank > me else range(0) for rank in range(ranks.size)]
    receive = [max(0, owned[rank + 1] - max(first[me], owned[rank])) if rank < me else 0 for rank in range(ranks.size)]
    given = [x.flatten(1) for x in tensors]
    wide = [torch.cat([x[:0], *(x[r.start - begin : r.stop - begin] for r in send)]) for x in given]
    leaving = torch.cat(wide, dim=1)
    coming = all_to_all(leaving, [len(r) for r in send], receive, ranks)
    parts = coming.split([x.shape[1] for x in given], dim=1)
    return tuple(torch.cat((part.unflatten(1, x.shape[1:]), x)) for part, x in zip(parts, tensors, strict=True))


def to_heads(tensors: Sequence[Tensor], owned: Sequence[int], ranks: Ranks) -> tuple[Tensor, ...]:
    """From this rank's tokens of all heads to all tokens of this rank's heads (DeepSpeed-Ulysses, arXiv 2309.14509).

    tensors: each [n, heads, width] of one dtype, heads a multiple of the ranks and not the same for all; rank r gets
    heads r, r + ranks, r + 2 ranks and so on, so that groups of neighbouring heads with less to do are shared out too.
    owned: [ranks + 1]: rank r holds tokens owned[r] to owned[r + 1]. Returns each as [owned[-1], heads / ranks, width].
    """
    size = ranks.size
    by_rank = [x.unflatten(1, (-1, size)).permute(2, 0, 1, 3) for x in tensors]
    shapes = [x.shape[2:] for x in by_rank]
    tokens = tensors[0].shape[0]
    leaving = torch.cat([x.flatten(2) for x in by_rank], dim=2).flatten(0, 1)
    coming = all_to_all(leaving, [tokens] * size, _counts(owned), ranks)
    parts = coming.split([heads * width for heads, width in shapes], dim=1)
    return tuple(part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True))


def to_tokens(x: Tensor, owned: Sequence[int], ranks: Ranks) -> Tensor:
    """The way back: x [owned[-1], heads / ranks, width] of all tokens to [n, heads, width] of this rank's."""
    counts = _counts(owned)
    coming = all_to_all(x, counts, [counts[ranks.rank]] * ranks.size, ranks)
    by_rank = torch.unflatten(coming, 0, (ranks.size, counts[ranks.rank]))
    return by_rank.permute(1, 2, 0, 3).flatten(1, 2)


def _counts(owned: Sequence[int]) -> list[int]:
    return [end - begin for begin, end in pairwise(owned)]
