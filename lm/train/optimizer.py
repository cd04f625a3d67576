"""Which parameter is decayed, and the AdamW that DeepSpeed wraps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lm.train.options import OptimizerOptions


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: matrices with weight decay; norms, biases and embeddings without.

    A weight shared by an embedding and the output head counts as an embedding. Each parameter is in one group.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    plain = [p for p in trainable if p.ndim < 2 or id(p) in embeddings]
    plain_ids = {id(p) for p in plain}
    decayed = [p for p in trainable if id(p) not in plain_ids]
    groups = [
        {"name": "decayed", "params": decayed, "weight_decay": weight_decay},
        {"name": "plain", "params": plain, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, options: OptimizerOptions) -> torch.optim.AdamW:
    """AdamW with learning rate 0: the loop sets it before every step.

    The 0 matters: under bf16 without ZeRO, DeepSpeed takes one optimizer step on zero gradients when it starts,
    which would decay the weights at any other rate.
    """
    groups = parameter_groups(model, options.weight_decay)
    return torch.optim.AdamW(groups, lr=0.0, betas=options.betas, eps=options.eps, fused=True)
