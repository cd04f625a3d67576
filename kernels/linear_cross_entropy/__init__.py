"""The last linear layer and the cross-entropy together, without ever holding the full logits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.linear_cross_entropy.chunked import ChunkedCrossEntropy

__all__ = ["CrossEntropy", "linear_cross_entropy"]


class CrossEntropy(NamedTuple):
    """loss: scalar, the sum over counted targets. The others are [N] without gradient, 0 and False where ignored.

    token_nll: nats. correct: bool, whether the target has the greatest logit.
    """

    loss: Tensor
    token_nll: Tensor
    correct: Tensor


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    ignore_index: int = -100,
    z_loss: float = 0.0,
    chunk_size: int = 512,
    num_classes: int | None = None,
) -> CrossEntropy:
    """Sum over the targets of nll + z_loss * lse**2, where the logits are hidden @ weight.T.

    hidden: [N, C]; weight: [V, C] of the same floating-point type; targets: [N] int64 in [0, V) or ignore_index.
    num_classes: rows of the weight from there on are padding, never predicted and without a gradient; None: no padding.
    Statistics are float32 (float64 for float64). At most chunk_size x V logits exist at a time,
    and none for ignored targets.
    Where a gradient is wanted it is computed here, and `backward` only scales it: call it under no_grad for evaluation.
    Raises ValueError for shapes that do not fit and for targets out of range.
    """
    if hidden.dim() != 2 or weight.dim() != 2 or hidden.shape[1] != weight.shape[1] or hidden.dtype != weight.dtype:
        raise ValueError(
            f"need hidden [N, C] and weight [V, C] of one type; got {tuple(hidden.shape)} {hidden.dtype} "
            f"and {tuple(weight.shape)} {weight.dtype}"
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(f"targets must be [{hidden.shape[0]}] int64; got {tuple(targets.shape)} {targets.dtype}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1; got {chunk_size}")
    classes = weight.shape[0] if num_classes is None else num_classes
    if not 1 <= classes <= weight.shape[0]:
        raise ValueError(f"num_classes must be in [1, {weight.shape[0]}]; got {num_classes}")
    (counted,) = torch.nonzero(targets != ignore_index, as_tuple=True)
    wanted = targets[counted]
    wrong = (wanted < 0) | (wanted >= classes)
    if bool(wrong.any()):
        raise ValueError(f"target {int(wanted[wrong][0])} is neither in [0, {classes}) nor ignore_index {ignore_index}")
    seen = hidden if len(counted) == len(targets) else hidden.index_select(0, counted)
    loss, nll, correct = ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        seen, weight, wanted, z_loss, chunk_size, torch.is_grad_enabled(), classes
    )
    token_nll, token_correct = (x.new_zeros(targets.shape).index_copy(0, counted, x) for x in (nll, correct))
    return CrossEntropy(loss, token_nll, token_correct)
