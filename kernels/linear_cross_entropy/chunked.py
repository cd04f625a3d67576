"""Linear cross-entropy over chunks of tokens; the gradients are made in the forward sweep, while the logits exist."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.precision import at_least_float32


class ChunkedCrossEntropy(torch.autograd.Function):
    """apply(hidden, weight, targets, z_loss, chunk_size, with_gradients, classes) -> (loss, token_nll, correct).

    Only the first `classes` rows of the weight count.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        z_loss: float,
        chunk_size: int,
        with_gradients: bool,
        classes: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = at_least_float32(hidden.dtype)
        token_nll = torch.zeros(targets.shape, dtype=wide, device=hidden.device)
        token_z = torch.zeros_like(token_nll)
        correct = torch.zeros(targets.shape, dtype=torch.bool, device=hidden.device)
        need_hidden, need_weight = (with_gradients and need for need in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden) if need_hidden else None
        grad_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device) if need_weight else None
        # One buffer for the logits of all chunks, and no pass over it more than needed: fresh memory is slow on a CPU.
        buffer = torch.empty((min(chunk_size, len(targets)), len(weight)), dtype=wide, device=hidden.device)
        for first in range(0, len(targets), chunk_size):
            rows = slice(first, first + chunk_size)
            logits = _logits(hidden[rows], weight, buffer)
            logits[:, classes:] = -torch.inf
            target = targets[rows, None]
            greatest, place = logits.max(dim=1)
            wanted = logits.gather(1, target)[:, 0]
            shares = torch.softmax(logits, dim=1, out=logits)
            lse = greatest - shares.gather(1, place[:, None])[:, 0].log()  # the greatest share is at least 1 / V
            token_nll[rows] = lse - wanted
            token_z[rows] = lse
            correct[rows] = place == targets[rows]
            if not (need_hidden or need_weight):
                continue
            grad_logits = shares if z_loss == 0 else shares.mul_((1 + 2 * z_loss * lse)[:, None])
            grad_logits.scatter_add_(1, target, grad_logits.new_full(target.shape, -1.0))
            grad_logits = grad_logits.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[rows])
            if grad_weight is not None:
                _add_outer(grad_weight, grad_logits, hidden[rows])
        # A sum over all tokens can be beyond float16 where the mean is not: it stays wide until it is scaled.
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.dtype = hidden.dtype
        ctx.mark_non_differentiable(token_nll, correct)
        return (token_nll + z_loss * token_z**2).sum(), token_nll, correct

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        scaled = (None if grad is None else _scaled(grad, grad_loss, ctx.dtype) for grad in ctx.saved_tensors)
        return *scaled, None, None, None, None, None


def _scaled(grad: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """grad * factor, rounded to `dtype` after the product: a factor such as a loss scale can be beyond float16, too."""
    factor = factor.reshape(1)  # a tensor without dimensions would be rounded to the gradient's type first
    return torch.mul(grad, factor, out=torch.empty(grad.shape, dtype=dtype, device=grad.device))


def _logits(hidden: Tensor, weight: Tensor, buffer: Tensor) -> Tensor:
    """hidden @ weight.T in the first rows of the buffer, in the buffer's type."""
    logits = buffer[: len(hidden)]
    if buffer.dtype == hidden.dtype:
        return torch.mm(hidden, weight.t(), out=logits)
    return logits.copy_(hidden @ weight.t())


def _add_outer(total: Tensor, grad_logits: Tensor, hidden: Tensor) -> None:
    if total.dtype == hidden.dtype:
        total.addmm_(grad_logits.t(), hidden)
    else:
        total += grad_logits.t() @ hidden
