"""What a call of interval attention looks like from inside, on a sample of its queries."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from kernels.interval_attention import Intervals

SCORES_AT_ONCE = 2**24
"""Scores that are held at a time: 64 MiB of them."""
GOLDEN = 0.6180339887498949


def sample_of(tokens: int, queries: int, device: torch.device) -> Tensor:
    """[min(queries, tokens)] int64: rising places in a stream, one in each of as many equal parts.

    The place in a part follows the golden ratio, so that it has no rhythm in common with chunks, groups and windows.
    """
    count = min(queries, tokens)
    part = torch.arange(count, device=device, dtype=torch.float64)
    return ((part + (part + 1) * GOLDEN % 1) * (tokens / count)).long()


@dataclass(frozen=True)
class HeadGroup:
    """Neighbouring query heads [first, end) that see the same keys.

    largest: the largest |score| before softmax, a scalar. entropy: [2], summed entropy of the softmax in nats, and the
    rows it is summed over. only: whether the layer has no other.
    """

    first: int
    end: int
    only: bool
    largest: Tensor
    entropy: Tensor


@torch.no_grad()
def head_groups(
    q: Tensor,
    k: Tensor,
    intervals: Intervals,
    scale: float,
    extra_score: Tensor | None,
    extra_is_key: bool,
    sample: Tensor,
) -> list[HeadGroup]:
    """Figures of each head group over the sampled queries [Q] of a call as `interval_attention` has it.

    extra_is_key: whether the extra entry is the score of a key (RAT's own state) and not of nothing (a sink): it always
    has its part in the entropy, but only a key's score can be the largest.
    """
    heads, kv_heads = q.shape[1], k.shape[1]
    repeats = heads // kv_heads
    largest = q.new_zeros(heads, dtype=torch.float32)
    entropy = q.new_zeros(2, heads, dtype=torch.float32)
    for part in sample.split(max(1, SCORES_AT_ONCE // (heads * max(1, len(k))))):
        scores, seen = _scores(q, k, intervals, scale, part)
        if len(k):
            largest = torch.maximum(largest, (scores * seen).abs().amax(dim=(1, 2)))
        scores = scores.masked_fill(~seen, -torch.inf)
        if extra_score is not None:
            extra = extra_score[part].float().t()[..., None]  # [H, Q, 1]
            scores = torch.cat((scores, extra), dim=2)
            if extra_is_key:
                largest = torch.maximum(largest, extra.abs().amax(dim=(1, 2)))
        if not scores.shape[2]:
            continue
        logs = scores.log_softmax(dim=2)
        rows = ~logs[..., 0].isnan()  # a row that sees nothing has no entropy
        entropy += torch.stack((_entropy(logs).nan_to_num(0.0).sum(dim=1), rows.sum(dim=1)))
    called = [range(*pair) for pair in pairwise(accumulate(intervals.kv_heads, initial=0))]
    found = []
    for own, group in zip(called, intervals.parts_of or called, strict=True):
        heads_of = slice(repeats * own.start, repeats * own.stop)
        figures = largest[heads_of].amax(), entropy[:, heads_of].sum(dim=1)
        only = len(called) == 1 and not intervals.parts_of
        found.append(HeadGroup(repeats * group.start, repeats * group.stop, only, *figures))
    return found


def _scores(q: Tensor, k: Tensor, intervals: Intervals, scale: float, part: Tensor) -> tuple[Tensor, Tensor]:
    """([H, Q, M] float32, [H or 1, Q, M] bool): scaled scores of some queries with all keys, and which they see."""
    kv_heads = k.shape[1]
    queries = q[part].unflatten(1, (kv_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)  # [G, repeats * Q, D]
    scores = (queries @ k.permute(1, 2, 0)).float() * scale
    key = torch.arange(len(k), device=k.device)
    seen = (key >= intervals.start[:, part, None]) & (key < intervals.end[part, None])  # [groups, Q, M]
    if len(seen) > 1:
        seen = seen[intervals.group_of_head].repeat_interleave(q.shape[1] // kv_heads, dim=0)
    return scores.unflatten(1, (-1, len(part))).flatten(0, 1), seen


def _entropy(logs: Tensor) -> Tensor:
    """[...] of log-probabilities [..., M]; what has no probability adds nothing."""
    return -(logs.exp() * logs.masked_fill(logs == -torch.inf, 0.0)).sum(dim=-1)


def labels(groups: list[HeadGroup]) -> Iterator[tuple[str, HeadGroup]]:
    """What names each group in a metric: nothing where it is the only one, else its heads, `/0-1`."""
    for group in groups:
        yield "" if group.only else f"/{group.first}-{group.end - 1}", group
