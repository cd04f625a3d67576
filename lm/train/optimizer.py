"""Which parameter is updated by what, which is decayed, and the optimizer that DeepSpeed wraps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lm.model.decoder import Head
from lm.train.muon import GROUP, MuonAdamW
from lm.train.optimizer_options import OptimizerOptions


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_factors: Mapping[str, float] | None = None, muon: bool = False
) -> list[dict[str, Any]]:
    """The trainable parameters in groups: matrices with weight decay; norms, biases and embeddings without.

    A weight shared by an embedding and the output head counts as an embedding. Each parameter is in one group.
    lr_factors: by name of parameter, its learning rate over the run's, 1 if left out; each factor has its own groups,
    which hold it as `lr_factor`. muon: the weights of linear layers, but for the head, form groups named `muon.GROUP`.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    matrices = _matrices(model) if muon else set()
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "plain" if parameter.ndim < 2 or id(parameter) in embeddings else "decayed"
            kind = GROUP if id(parameter) in matrices else kind
            groups.setdefault((kind, (lr_factors or {}).get(name, 1.0)), []).append(parameter)
    decay = {"decayed": weight_decay, "plain": 0.0, GROUP: weight_decay}
    return [
        {"name": kind, "params": parameters, "weight_decay": decay[kind], "lr_factor": factor}
        for (kind, factor), parameters in sorted(groups.items(), key=lambda group: group[0])
    ]


def _matrices(model: nn.Module) -> set[int]:
    """Ids of the weights of linear layers. What embeds tokens or scores them is none: its rows are words."""
    modules: list[Any] = list(model.modules())
    outputs = [m.get_output_embeddings() for m in modules if hasattr(m, "get_output_embeddings")]
    words = [m for m in modules if isinstance(m, nn.Embedding | Head)] + [head for head in outputs if head is not None]
    spared = {id(weight) for module in words for weight in module.parameters()}
    return {id(module.weight) for module in modules if isinstance(module, nn.Linear)} - spared


def build_optimizer(
    model: nn.Module, options: OptimizerOptions, lr_factors: Mapping[str, float] | None = None
) -> torch.optim.AdamW:
    """AdamW, or Muon beside it, with learning rate 0: the loop sets it before every step.

    The 0 keeps weights as they are in any step that DeepSpeed takes by itself before the first one of the loop, as it
    does on zero gradients to allocate the moments under some settings.
    """
    groups = parameter_groups(model, options.weight_decay, lr_factors, options.kind == "muon")
    adamw: dict[str, Any] = {"lr": 0.0, "betas": options.betas, "eps": options.eps, "fused": True}
    if options.kind == "muon":
        return MuonAdamW(groups, momentum=options.momentum, **adamw)
    return torch.optim.AdamW(groups, **adamw)
