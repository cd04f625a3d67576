"""The definition of the calls that `flash` makes, sequence by sequence in plain PyTorch, for checking it on any device.

Alignment and logsumexp are those of FlashAttention-2: the last query of a sequence sees its last key, and a row that
sees nothing has out 0 and lse +inf.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from kernels.interval_attention.dense import Gradients
from kernels.interval_attention.flash_plan import VarlenCall


class PlainVarlen:
    """`kernels.interval_attention.flash.Varlen` with the scores of one sequence in memory."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, call: VarlenCall, scale: float) -> tuple[Tensor, Tensor]:
        out, lse = torch.zeros_like(q), torch.full(q.shape[:2], torch.inf).t().contiguous()
        for rows, keys in _sequences(call):
            scores = _scores(q[rows], k[keys], call, scale)
            total = scores.logsumexp(dim=2)
            total = total.masked_fill(total == -torch.inf, torch.inf)
            weights = torch.exp(scores - total[..., None])
            out[rows] = (weights @ _spread(v[keys], q)).transpose(0, 1).to(out.dtype)
            lse[:, rows] = total
        return out, lse

    @staticmethod
    def backward(
        grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, call: VarlenCall, scale: float
    ) -> Gradients:
        grad_q, grad_k, grad_v = (torch.zeros_like(x) for x in (q, k, v))
        for rows, keys in _sequences(call):
            weights = torch.exp(_scores(q[rows], k[keys], call, scale) - lse[:, rows, None])
            grad = grad_out[rows].float().transpose(0, 1)
            delta = (grad * out[rows].float().transpose(0, 1)).sum(dim=2, keepdim=True)
            slopes = weights * (grad @ _spread(v[keys], q).mT - delta) * scale
            grad_q[rows] = (slopes @ _spread(k[keys], q)).transpose(0, 1).to(q.dtype)
            grad_k[keys] = _gather(slopes.mT @ q[rows].float().transpose(0, 1), k)
            grad_v[keys] = _gather(weights.mT @ grad, v)
        return grad_q, grad_k, grad_v


def _sequences(call: VarlenCall) -> Iterator[tuple[slice, slice]]:
    rows, keys = call.cu_rows.tolist(), call.cu_keys.tolist()
    for i in range(len(rows) - 1):
        yield slice(rows[i], rows[i + 1]), slice(keys[i], keys[i + 1])


def _spread(keys: Tensor, q: Tensor) -> Tensor:
    """[keys, G, D] -> [H, keys, D]: for every query head."""
    return keys.float().transpose(0, 1).repeat_interleave(q.shape[1] // keys.shape[1], dim=0)


def _gather(grad: Tensor, keys: Tensor) -> Tensor:
    """[H, keys, D] -> [keys, G, D]: the sum over the query heads of each key/value head."""
    return torch.unflatten(grad, 0, (keys.shape[1], -1)).sum(dim=1).transpose(0, 1).to(keys.dtype)


def _scores(q: Tensor, k: Tensor, call: VarlenCall, scale: float) -> Tensor:
    """[H, rows, keys], -inf where a row does not see a key."""
    scores = q.float().transpose(0, 1) @ _spread(k, q).mT * scale
    aligned = torch.arange(len(q))[:, None] + len(k) - len(q)
    key = torch.arange(len(k))
    hidden = key > aligned
    if call.window is not None:
        hidden |= key <= aligned - call.window
    return scores.masked_fill(hidden, -torch.inf)
