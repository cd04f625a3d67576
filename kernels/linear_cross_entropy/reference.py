"""The definition of linear cross-entropy: the whole logits at once."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.precision import at_least_float32


def reference_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, z_loss: float, num_classes: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, token_nll, correct) as `linear_cross_entropy` returns them; needs memory for N x V logits."""
    wide = at_least_float32(hidden.dtype)
    logits = hidden.to(wide) @ weight.to(wide).t()
    if num_classes is not None:
        logits = logits[:, :num_classes]
    lse = logits.logsumexp(dim=1)
    counted = targets != ignore_index
    nll = lse - logits.gather(1, torch.where(counted, targets, 0)[:, None])[:, 0]
    loss = torch.where(counted, nll + z_loss * lse**2, 0.0).sum()
    return loss, torch.where(counted, nll, 0.0).detach(), counted & (logits.argmax(dim=1) == targets)
