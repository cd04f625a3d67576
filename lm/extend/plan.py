"""What an extension costs: the base's layers are counted as they are, attention as Braid's mixer of the same reach."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from lm.extend.adapters import target_names, whole_modules
from lm.extend.options import LoraOptions
from lm.extend.stand_in import stand_in
from lm.hf import BraidConfig
from lm.model.documents import Documents
from lm.model.mixers import Mixer
from lm.plan import ALONE, LayerPlan, Plan, Shared, exchange_of, make_plan


def plan_extension(
    config: PreTrainedConfig,
    group_size: int | None,
    lora: LoraOptions | None,
    sequence_length: int,
    dtype: torch.dtype,
    shared: Shared = ALONE,
    quantized: bool = False,
) -> Plan:
    """The plan of a base of this configuration, trained on documents of `sequence_length` tokens in `dtype`.

    quantized: the linear layers but the output head are kept in 4 bits.

    Each layer's activations but its input are computed again in backward, which the FLOPs of training leave out, as
    they do adapters' own products.
    """
    model = _without_weights(config)
    if isinstance(config, BraidConfig):
        plan = make_plan(config.to_options(), sequence_length, dtype, shared)
    else:
        plan = _plan(model, stand_in(config, group_size), sequence_length, dtype, shared)
    inputs = config.hidden_size * len(plan.layers)
    plan = replace(
        plan,
        activation_bytes_per_token=plan.activation_bytes_per_token / len(plan.layers) + inputs * dtype.itemsize,
        recomputed_flops_per_token=sum(layer.flops_per_token for layer in plan.layers),
    )
    if quantized:
        weights = (part.weight for layer in _decoder_layers(model) for part in _linears(layer))
        plan = replace(plan, quantized_parameters=sum(weight.numel() for weight in weights))
    return plan if lora is None else _partly_frozen(plan, model, lora)


def check_targets(config: PreTrainedConfig, lora: LoraOptions) -> None:
    """Raises UserError for `lora.targets` that a model of this configuration does not have."""
    target_names(_without_weights(config), lora)


def _without_weights(config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"), no_init_weights():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return model


def _plan(model: PreTrainedModel, mixer: Mixer[Any], length: int, dtype: torch.dtype, shared: Shared) -> Plan:
    exchange, exchange_bytes = exchange_of(mixer, None, length, dtype, shared)
    config, documents = model.config, Documents.from_lengths([length])
    earliest = documents.position
    attention = 4 * mixer.dimensions.head_dim * mixer.scored_pairs(documents) / length
    now, later = (mixer.cache_bytes(tokens, dtype) for tokens in (length, 2 * length))
    layers = []
    for layer in _decoder_layers(model):
        earliest = mixer.earliest(documents, earliest)
        layers.append(
            LayerPlan(
                mixer=mixer.options.kind,
                kind=mixer.options.kind,
                extent=mixer.options.extent,
                heads=mixer.dimensions.num_attention_heads,
                kv_heads=mixer.dimensions.num_key_value_heads,
                parameters=sum(p.numel() for p in layer.parameters()),
                flops_per_token=2 * sum(part.weight.numel() for part in _linears(layer)) + attention,
                cache_bytes_per_token=(later - now) / length,
                cache_bytes=now,
                reach=int((documents.position - earliest).max()) + 1,
                exchange=exchange,
                exchange_bytes=exchange_bytes,
            )
        )
    embedding, head = (m.weight for m in (model.get_input_embeddings(), model.get_output_embeddings()))
    outputs = sum(part.out_features for layer in _decoder_layers(model) for part in _linears(layer))
    return Plan(
        sequence_length=length,
        layers=tuple(layers),
        parameters=model.num_parameters(),
        embedding_parameters=embedding.numel() * (1 if config.tie_word_embeddings else 2),
        flops_per_token=sum(layer.flops_per_token for layer in layers) + 2 * head.numel(),
        activation_bytes_per_token=2 * outputs * dtype.itemsize,
        vocab_size=config.vocab_size,
        head_gradient_parameters=head.numel(),
        shared=shared,
    )


def _partly_frozen(plan: Plan, model: PreTrainedModel, lora: LoraOptions) -> Plan:
    """The plan where only adapters and what `lora` trains whole are updated."""
    targets = target_names(model, lora)
    linears = [
        (name.rpartition(".")[2], part)
        for layer in _decoder_layers(model)
        for name, part in layer.named_modules()
        if isinstance(part, nn.Linear)
    ]
    adapters = sum(
        lora.rank * (part.in_features + part.out_features) + (part.out_features if lora.dora else 0)
        for name, part in linears
        if name in targets
    )
    whole = {p for name in whole_modules(model, lora) for p in model.get_submodule(name).parameters()}
    frozen = plan.parameters - sum(p.numel() for p in whole)
    head = model.get_output_embeddings().weight
    frozen_head = 0 if head in whole else head.numel()
    weights = sum(part.weight.numel() for _, part in linears) + frozen_head
    return replace(
        plan,
        parameters=plan.parameters + adapters,
        frozen_parameters=frozen,
        frozen_flops_per_token=2.0 * weights,
        head_gradient_parameters=head.numel() - frozen_head,
    )


def _decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    count = model.config.num_hidden_layers
    return next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count)


def _linears(module: nn.Module) -> Iterator[nn.Linear]:
    return (part for part in module.modules() if isinstance(part, nn.Linear))
