"""Which parameter is decayed, and the AdamW that DeepSpeed wraps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lm.train.optimizer_options import OptimizerOptions


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_factors: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """The trainable parameters in two groups: matrices with weight decay; norms, biases and embeddings without.

    A weight shared by an embedding and the output head counts as an embedding. Each parameter is in one group.
    lr_factors: by name of parameter, its learning rate over the run's, 1 if left out; each factor has its own groups,
    which hold it as `lr_factor`.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "plain" if parameter.ndim < 2 or id(parameter) in embeddings else "decayed"
            groups.setdefault((kind, (lr_factors or {}).get(name, 1.0)), []).append(parameter)
    decay = {"decayed": weight_decay, "plain": 0.0}
    return [
        {"name": kind, "params": parameters, "weight_decay": decay[kind], "lr_factor": factor}
        for (kind, factor), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


def build_optimizer(
    model: nn.Module, options: OptimizerOptions, lr_factors: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """AdamW with learning rate 0: the loop sets it before every step.

    The 0 keeps weights as they are in any step that DeepSpeed takes by itself before the first one of the loop, as it
    does on zero gradients to allocate the moments under some settings.
    """
    groups = parameter_groups(model, options.weight_decay, lr_factors)
    return torch.optim.AdamW(groups, lr=0.0, betas=options.betas, eps=options.eps, fused=True)
