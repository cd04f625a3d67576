"""What a model knows of positions: up to where no length changes its angles."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from lm.extend.rope_plan import fixed_until


def fixed_angles(config: PreTrainedConfig) -> int | None:
    """Tokens of the longest rows that all have the same angles, whatever stands beside them; None where any have."""
    longest = getattr(config, "max_position_embeddings", 0)  # RecurrentGemma, say, states none
    limits = [fixed_until(rope, longest) for rope in _rope_parameters(config)]
    return min((limit for limit in limits if limit is not None), default=None)


@torch.no_grad()
def forget_longer_rows(model: PreTrainedModel) -> None:
    """Undoes what a longer row leaves behind: `dynamic` angles stay those of the longest row until one is short again.

    So a single token is read, by which transformers itself goes back to the angles that it began with.
    """
    if any(rope.get("rope_type") == "dynamic" for rope in _rope_parameters(model.config)):
        device = model.get_input_embeddings().weight.device
        model.base_model(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=device), use_cache=False)


def _rope_parameters(config: PreTrainedConfig) -> list[dict[str, object]]:
    """Those of every kind of layer; none where positions are not rotary."""
    rope = getattr(config, "rope_parameters", None) or {}
    by_layer = config.nested_rope_parameter_keys(rope)
    return [kind for kind in ([rope[name] for name in by_layer] if by_layer else [rope]) if kind]
