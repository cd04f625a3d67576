"""Activation checkpointing: which activations a layer drops after its forward, to compute them again in backward.

Loss and gradients are the same to the last bit, since the same operations run on the same inputs. It is PyTorch's
non-reentrant checkpoint: DeepSpeed's own fails under ZeRO-3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from lm.model.block import Block
from lm.model.decoder import Decoder
from lm.plan import Plan
from lm.train.options import ActivationCheckpointing

KEPT = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
"""What linear layers call; attention's own products are batched, and are computed again."""


def recompute_layers(model: nn.Module, options: ActivationCheckpointing | None) -> None:
    """Makes the decoder of `model` drop activations from now on, in training; None keeps all."""
    if options is None:
        return
    for module in model.modules():
        if isinstance(module, Decoder):
            module.wrap = partial(_wrap, options)


def _wrap(options: ActivationCheckpointing, index: int, layer: Block) -> Callable[..., Tensor]:
    if not layer.training or index % options.every:
        return layer
    contexts: dict[str, Any] = {}
    if options.kind == "selective":
        contexts = {"context_fn": partial(create_selective_checkpoint_contexts, list(KEPT))}
    # A layer draws no random numbers, so there are none to put back.
    return partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False, **contexts)


def planned(plan: Plan, options: ActivationCheckpointing | None) -> Plan:
    """The plan with what is kept and computed again."""
    if options is None:
        return plan
    layers = len(plan.layers)
    chosen = plan.layers[:: options.every]
    dropped = plan.activation_bytes_per_token * len(chosen) / layers
    kept = plan.layer_input_bytes_per_token * len(chosen)
    if options.kind == "selective":
        kept += plan.linear_output_bytes_per_token * len(chosen) / layers
        again = sum(layer.flops_per_token - layer.linear_flops_per_token for layer in chosen)
    else:
        again = sum(layer.flops_per_token for layer in chosen)
    return replace(
        plan,
        activation_bytes_per_token=plan.activation_bytes_per_token - dropped + kept,
        recomputed_flops_per_token=again,
    )
