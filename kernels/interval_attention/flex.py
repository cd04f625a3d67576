"""The `flex` backend: PyTorch's FlexAttention (arXiv 2412.05496), told which blocks the intervals touch."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels.backends import Backend
from kernels.interval_attention.intervals import Intervals
from kernels.interval_attention.reference import reference_attention

BLOCK = 128
MIN_HEAD_DIM = 16  # the least depth of a matrix product
# Kernels of a run at most: one for each kind of mask, with gradients and without, for fixed and for changing lengths.
# PyTorch's own limit of 8 is soon reached; past it FlexAttention would run unfused and hold all the scores.
MAX_VARIANTS = 64


@cache
def _unavailable() -> str | None:
    """Why FlexAttention cannot run on this machine, None where it can."""
    return None if torch.cuda.is_available() else "there is no GPU (on a CPU it has no backward)"


def _refuses(q: Tensor, *_: Any) -> str | None:
    if q.device.type != "cuda":
        return f"it runs on cuda, the tensors are on {q.device.type}"
    if q.dtype == torch.float64:
        return "it serves float32, bfloat16 and float16, not float64"
    if q.shape[2] < MIN_HEAD_DIM:
        return f"it serves a head_dim of at least {MIN_HEAD_DIM}, not {q.shape[2]}"
    return None


def flex_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Intervals,
    scale: float,
    extra_score: Tensor | None,
    extra_value: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Same shapes and result as `interval_attention`. Compiled on a GPU; on a CPU forward only, and slow."""
    if not len(q) or not len(k):  # PyTorch's has nothing to compile; nor is there anything to compute
        return reference_attention(q, k, v, intervals, scale, extra_score, extra_value)
    from torch.nn.attention.flex_attention import AuxRequest

    repeats = q.shape[1] // k.shape[1]
    mask = intervals.memo(f"flex blocks, {repeats} x {len(k)}", lambda: _block_mask(intervals, repeats, len(k)))
    listed, aux = _attention(q.device.type)(
        *(x.transpose(0, 1)[None] for x in (q, k, v)),
        block_mask=mask,
        scale=scale,
        enable_gqa=repeats > 1,
        return_aux=AuxRequest(lse=True),
    )
    out, lse = listed[0].transpose(0, 1), aux.lse[0].t()
    if extra_score is None:
        return out, lse.detach()
    score, wide = extra_score.to(lse.dtype), out.to(lse.dtype)
    # The share's gradient in lse reaches the scores of the listed keys through FlexAttention's own backward.
    share = torch.sigmoid(score - lse).nan_to_num(0.0)[..., None]  # nan: neither side sees a key
    joint = wide * (1 - share) if extra_value is None else torch.lerp(wide, extra_value.to(lse.dtype), share)
    return joint.to(q.dtype), torch.logaddexp(lse, score).detach()


@cache
def _attention(device: str) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention if device == "cpu" else _compiled()


def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    # With fullgraph, more variants than the limit are an error.
    compiled = torch.compile(flex_attention, fullgraph=True)
    return torch._dynamo.config.patch(recompile_limit=MAX_VARIANTS)(compiled)


def _block_mask(intervals: Intervals, repeats: int, num_keys: int) -> Any:
    """Blocks that all their queries see whole, and those at the edges with a predicate; no N x M mask is made.

    repeats: query heads for each key/value head.
    """
    from torch.nn.attention.flex_attention import BlockMask

    start, end = intervals.start, intervals.end
    groups = intervals.group_of_head.repeat_interleave(repeats)
    first = torch.arange(0, len(end), BLOCK, device=end.device)
    last = (first + BLOCK).clamp(max=len(end)) - 1
    key = torch.arange(0, num_keys, BLOCK, device=end.device)
    touched = (key < end[last, None]) & (key + BLOCK > start[:, first, None])
    whole = (key >= start[:, last, None]) & (key + BLOCK <= end[first, None]) & (first + BLOCK <= len(end))[:, None]

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key >= start[groups[head], query]) & (key < end[query])

    heads = groups if len(start) > 1 else groups[:1]  # one head stands for all where they see the same
    return BlockMask.from_kv_blocks(
        *_ordered((touched & ~whole)[heads]),
        *_ordered((touched & whole)[heads]),
        BLOCK_SIZE=BLOCK,
        mask_mod=visible,
        seq_lengths=(len(end), num_keys),
    )


def _ordered(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """[H, rows, keys] bool -> ([1, H, rows] how many, [1, H, rows, keys] which, those first), int32."""
    counts = blocks.sum(dim=-1, dtype=torch.int32)
    order = torch.argsort(~blocks, dim=-1, stable=True).to(torch.int32)
    return counts[None], order[None]


FLEX = Backend(flex_attention, _unavailable, _refuses)
