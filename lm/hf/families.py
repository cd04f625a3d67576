"""Llama-family architectures as Braid options: what each configuration means here, and what its weights are called.

Every difference between the families is either an option of Braid's mixers or is folded into the weights, so that an
imported model is an ordinary Braid model. What has no counterpart is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor
from transformers import PreTrainedConfig

from lm.errors import UserError
from lm.model.rope import RopeScaling

LAYER_TYPES = {"full_attention": "global", "sliding_attention": "local"}
ACTIVATIONS = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"}


@dataclass(frozen=True)
class Family:
    """How one architecture differs from Llama's: biases and norms on queries and keys, Gemma's norms and scales."""

    qkv_bias: bool = False
    qk_norm: bool = False
    gemma: bool = False


FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True),
    "gemma3_text": Family(qk_norm=True, gemma=True),
}


def describe(config: PreTrainedConfig) -> dict[str, Any]:
    """The fields of `ModelOptions` of the Braid model that computes what a model of this configuration computes.

    Raises UserError, naming the field, for what Braid's layers do not do.
    """
    family = _family(config)
    types = _layer_types(config)
    ropes = {kind: _rope(config, kind) for kind in types}
    theta = ropes.get("full_attention", next(iter(ropes.values())))["rope_theta"]
    mixers: dict[str, dict[str, Any]] = {}
    for kind, rope in ropes.items():
        mixer = {"kind": "attention", "qkv_bias": family.qkv_bias, "qk_norm": family.qk_norm} | rope
        if rope["rope_theta"] == theta:
            del mixer["rope_theta"]
        if kind == "sliding_attention":
            mixer["window"] = config.sliding_window
        mixers[LAYER_TYPES[kind]] = mixer
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": getattr(config, "head_dim", None),
        "intermediate_size": config.intermediate_size,
        "mlp": ACTIVATIONS[_activation(config)],
        "rms_norm_eps": config.rms_norm_eps,
        "output_norms": family.gemma,
        "rope_theta": theta,
        "max_position_embeddings": config.max_position_embeddings,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "mixers": mixers,
        "layers": write_pattern([LAYER_TYPES[kind] for kind in types]),
    }


def translate(config: PreTrainedConfig, state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the Braid model from those of the original; tensors are shared where nothing is folded."""
    rename, fold = (_gemma_name, _gemma_fold(config)) if _family(config).gemma else (_llama_name, None)
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        new = rename(name)
        yield new, tensor if fold is None else fold(new, tensor)


def write_pattern(names: list[str]) -> str:
    """The shortest layer pattern for these mixers that one repeated group and plain repeats can write."""
    candidates = [_runs(names)]
    for period in range(2, len(names) // 2 + 1):
        repeats = 1
        while names[repeats * period : (repeats + 1) * period] == names[:period]:
            repeats += 1
        if repeats > 1:
            candidates.append(f"({_runs(names[:period])})*{repeats} {_runs(names[repeats * period :])}".strip())
    return min(candidates, key=len)


def reasons(error: ValidationError) -> str:
    """What pydantic found, in one line: keys and sentences."""
    found = []
    for detail in error.errors(include_url=False):
        place = ".".join(map(str, detail["loc"]))
        found.append(f"{place}: {detail['msg']}" if place else detail["msg"].removeprefix("Value error, "))
    return "; ".join(found)


def _runs(names: list[str]) -> str:
    runs = [(name, len(list(run))) for name, run in groupby(names)]
    return " ".join(name if count == 1 else f"{name}*{count}" for name, count in runs)


def _family(config: PreTrainedConfig) -> Family:
    if config.model_type not in FAMILIES:
        raise UserError(f"a '{config.model_type}' model has no counterpart here; known: {', '.join(FAMILIES)}")
    refused = {
        "attention_bias": "Braid's o_proj has no bias",
        "mlp_bias": "Braid's MLP has no biases",
        "attn_logit_softcapping": "Braid's attention does not cap its logits",
        "final_logit_softcapping": "Braid's output does not cap its logits",
        "use_bidirectional_attention": "Braid's attention is causal",
        "quantization_config": "its weights are quantized; import the full-precision model",
    }
    for field, reason in refused.items():
        if getattr(config, field, None):
            raise UserError(f"{config.model_type} with {field} {getattr(config, field)!r}: {reason}")
    return FAMILIES[config.model_type]


def _activation(config: PreTrainedConfig) -> str:
    name = getattr(config, "hidden_activation", None) or config.hidden_act
    if name not in ACTIVATIONS:
        raise UserError(f"hidden_act '{name}' has no counterpart here; known: {', '.join(ACTIVATIONS)}")
    return str(name)


def _layer_types(config: PreTrainedConfig) -> list[str]:
    """The attention of each layer. A Mistral configuration has one window for all layers, or none."""
    default = "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
    types = getattr(config, "layer_types", None) or [default] * config.num_hidden_layers
    for kind in types:
        if kind not in LAYER_TYPES:
            raise UserError(f"layer type '{kind}' has no counterpart here; known: {', '.join(LAYER_TYPES)}")
    return list(types)


def _rope(config: PreTrainedConfig, kind: str) -> dict[str, Any]:
    """rope_theta, and rope_scaling where there is one, of layers of this type."""
    parameters = dict(config.rope_parameters.get(kind) or config.rope_parameters)
    rope: dict[str, Any] = {"rope_theta": float(parameters.pop("rope_theta"))}
    if parameters.pop("partial_rotary_factor", None) not in (None, 1.0):
        raise UserError("partial_rotary_factor below 1: Braid rotates whole heads")
    if parameters.get("rope_type", "default") == "default":
        return rope
    mscale, mscale_all_dim = parameters.pop("mscale", None), parameters.pop("mscale_all_dim", None)
    if mscale and mscale_all_dim and parameters.get("attention_factor") is None:
        growth = 0.1 * math.log(max(parameters["factor"], 1.0))
        parameters["attention_factor"] = (mscale * growth + 1) / (mscale_all_dim * growth + 1)
    parameters.pop("type", None)
    given = {key: value for key, value in parameters.items() if value is not None}
    if given["rope_type"] == "linear":
        given.pop("original_max_position_embeddings", None)
    try:
        scaling = TypeAdapter(RopeScaling).validate_python(given)
    except ValidationError as error:
        raise UserError(f"rope_parameters {given} have no counterpart here: {reasons(error)}") from None
    return rope | {"rope_scaling": scaling.model_dump(mode="json")}


def _llama_name(name: str) -> str:
    return name.replace(".self_attn.", ".mixer.")


def _gemma_name(name: str) -> str:
    """Gemma's `post_attention_layernorm` norms what attention puts out; Llama's norms what the MLP takes in."""
    for theirs, ours in (
        ("post_attention_layernorm", "mixer_output_layernorm"),
        ("pre_feedforward_layernorm", "post_attention_layernorm"),
        ("post_feedforward_layernorm", "mlp_output_layernorm"),
    ):
        if theirs in name:
            return name.replace(theirs, ours)
    return _llama_name(name)


def _gemma_fold(config: PreTrainedConfig) -> Callable[[str, Tensor], Tensor]:
    """Norms that multiply by 1 + w, scaled embeddings and the own scale of queries, all folded into weights.

    Where the embedding is the output matrix too, the final norm takes its scale back.
    """
    embedding = config.hidden_size**0.5
    query = (config.head_dim / config.query_pre_attn_scalar) ** 0.5

    def fold(name: str, tensor: Tensor) -> Tensor:
        if name.endswith("embed_tokens.weight"):
            return tensor * torch.tensor(embedding).to(tensor.dtype)  # rounded as the original rounds it
        if "norm" not in name:
            return tensor
        weight = tensor.double() + 1
        if name.endswith("q_norm.weight"):
            weight *= query
        if name == "model.norm.weight" and config.tie_word_embeddings:
            weight /= embedding
        return weight.to(tensor.dtype)

    return fold
