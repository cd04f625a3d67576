"""Another layer pattern over the weights of a pretrained model: which of them fit, and which are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers.initialization import no_init_weights

from lm.errors import UserError
from lm.hf.configuration import BraidConfig
from lm.hf.families import reasons
from lm.hf.modeling import BraidForCausalLM
from lm.model.block import Block
from lm.model.mixers import MIXERS
from lm.model.options import ModelOptions
from lm.model.short_conv import ShortConvolution
from lm.pattern import PatternError, expand

Mixers = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Layer:
    """Which weights of one layer's mixer, with its convolution, came from the original and which are new."""

    mixer: str
    kept: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        if not self.new:
            return f"{self.mixer}: all kept"
        return f"{self.mixer}: new {', '.join(self.new)}; kept {', '.join(self.kept) or 'none'}"


def with_pattern(described: Mapping[str, Any], layers: str, mixers: Mixers, key: str) -> ModelOptions:
    """The options of a model with another pattern of as many layers; its softmax mixers start from the original's own.

    described: the fields of the original's `ModelOptions`. mixers: those of the pattern where the original's own, `rat`
    and `local` do not suffice. key: of the pattern, for the messages of UserError, raised where it does not fit.
    """
    own: Mixers = described["mixers"]
    given = {**_ready_mixers(described["num_attention_heads"]), **mixers}
    defined = {
        name: {**(_inherited(own, name) if _over_tokens(mixer) else {}), **mixer} for name, mixer in given.items()
    }
    available = {**defined, **{name: mixer for name, mixer in own.items() if name not in mixers}}
    try:
        names = expand(layers, available)
    except PatternError as error:
        raise UserError(f"{key}: {error}") from None
    count = len(expand(described["layers"], own))
    if len(names) != count:
        raise UserError(f"{key}: '{layers}' has {len(names)} layers, the model has {count}")
    used = {name: available[name] for name in dict.fromkeys(names)}
    try:
        return ModelOptions.model_validate({**described, "mixers": used, "layers": layers})
    except ValidationError as error:
        raise UserError(f"{key}: '{layers}': {reasons(error)}") from None


def assemble(
    config: BraidConfig, weights: Mapping[str, Tensor], dtype: torch.dtype, seed: int
) -> tuple[BraidForCausalLM, tuple[Layer, ...]]:
    """The model with every tensor of `weights` that fits, shared; mixers that need more are drawn first, in `dtype`.

    weights: of the original, by the names of a Braid model of its own pattern.
    """
    with torch.device("meta"), no_init_weights():
        model = BraidForCausalLM(config)
    options, state = config.to_options(), dict(weights)
    report = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index, (block, name) in enumerate(zip(model.model.blocks, options.layer_names, strict=True)):
            kept, new = _fill(block, f"model.layers.{index}.", state, options, dtype)
            report.append(Layer(name, tuple(kept), tuple(new)))
    _, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert not unexpected, unexpected
    model.tie_weights()
    assert not any(parameter.is_meta for parameter in model.parameters())
    return model.eval(), tuple(report)


def _fill(
    block: Block, prefix: str, state: dict[str, Tensor], options: ModelOptions, dtype: torch.dtype
) -> tuple[list[str], list[str]]:
    """Draws what `state` cannot give to the layer's mixer, takes from `state` what does not fit; names kept and new."""
    mixing = f"{prefix}mixer."
    given = {key.removeprefix(mixing): state[key] for key in state if key.startswith(mixing)}
    wanted = dict(block.mixer.named_parameters())
    if not block.mixer.over_tokens and wanted.keys() - given.keys():  # queries and keys belong to other heads
        given = {key: tensor for key, tensor in given.items() if key.split(".")[0] not in ("q_proj", "k_proj")}
    kept = [key for key in wanted if key in given and given[key].shape == wanted[key].shape]
    new = [key for key in wanted if key not in kept]
    if new:
        block.mixer = MIXERS[block.mixer.options.kind](block.mixer.options, options.dimensions)
        block.mixer.init_weights(options.initializer_range)
        block.mixer.to(dtype)
    for key in [key for key in state if key.startswith(mixing) and key.removeprefix(mixing) not in kept]:
        del state[key]
    convolution = state.pop(f"{prefix}short_conv.weight", None)
    if block.short_conv is not None:
        if convolution is not None and convolution.shape == block.short_conv.weight.shape:
            state[f"{prefix}short_conv.weight"] = convolution
            kept.append("short_conv")
        else:
            block.short_conv = ShortConvolution(options.hidden_size, len(block.short_conv.weight)).to(dtype)
            new.append("short_conv")
    return kept, new


def _ready_mixers(heads: int) -> dict[str, dict[str, Any]]:
    """Mixers that a new pattern may name without defining them."""
    groups = next((count for count in range(2, heads) if heads % count == 0), heads)
    return {
        "global": {"kind": "attention"},
        "local": {"kind": "attention", "window": 1024},
        "rat": {"kind": "rat", "chunk_size": 16, "qk_groups": groups},
    }


def _inherited(own: Mixers, name: str) -> dict[str, Any]:
    """What a softmax mixer of a new pattern has of the original's: positions, biases, norms, sinks.

    The original's own mixer of that name gives it where there is one, else its `global`, else its first.
    """
    candidates = [own[key] for key in (name, "global") if key in own] + list(own.values())
    first: Mapping[str, Any] = next((mixer for mixer in candidates if _over_tokens(mixer)), {})
    fields = (set(kind.options_class.model_fields) for kind in MIXERS.values() if kind.over_tokens)
    shared = reduce(set.intersection, fields) - {"kind", "short_conv"}
    return {key: value for key, value in first.items() if key in shared}


def _over_tokens(mixer: Mapping[str, Any]) -> bool:
    known = MIXERS.get(mixer.get("kind", ""))
    return known is not None and known.over_tokens
