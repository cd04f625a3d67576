"""Braid's own models as base: global attention learns the new context, windows and recurrences stay what they are."""

from __future__ import annotations

from typing import Any

from lm.errors import UserError
from lm.extend.options import ExtendOptions
from lm.extend.rope_plan import check_target, plan_rope
from lm.hf import BraidConfig

GLOBAL_KINDS = ("attention", "shifted_short", "long_short")


def plan_config(config: BraidConfig, extend: ExtendOptions, *, training: bool) -> BraidConfig:
    """The configuration of the extended model; for training with groups in place of global attention, if asked.

    Both configurations fit the same weights. Raises UserError for a target that is no extension.
    """
    check_target(config.max_position_embeddings, extend.rope, extend.target_length)
    options = config.to_options()
    values = options.model_dump(mode="json") | {"max_position_embeddings": extend.target_length}
    for name, mixer in values["mixers"].items():
        if mixer["kind"] not in GLOBAL_KINDS or (mixer["kind"] == "attention" and mixer["window"] is not None):
            continue
        if mixer["positions"] == "rope":
            mixer |= _rescaled(mixer, config, extend)
        if training:
            in_groups = extend.attention == "shifted_short"
            values["mixers"][name] = _in_groups(mixer, extend) if in_groups else _in_full(mixer)
    planned = config.to_dict() | values
    try:
        return BraidConfig(**{key: value for key, value in planned.items() if key != "model_type"})
    except ValueError as error:
        raise UserError(f"extend.attention: {extend.attention} does not fit the base: {error}") from None


def _rescaled(mixer: dict[str, Any], config: BraidConfig, extend: ExtendOptions) -> dict[str, Any]:
    """The mixer's rope_theta and rope_scaling for the new context."""
    before = mixer["rope_scaling"] or {"rope_type": "default"}
    parameters = before | {"rope_theta": mixer["rope_theta"] or config.rope_theta}
    # Braid's max_position_embeddings is the longest trained context, scaled or not.
    plan = plan_rope(
        parameters, config.max_position_embeddings, config.head_dim or 0, extend.rope, extend.target_length
    )
    theta = plan.parameters.pop("rope_theta")
    scaled = plan.parameters["rope_type"] != "default"
    return {"rope_theta": theta, "rope_scaling": plan.parameters if scaled else None}


def _in_groups(mixer: dict[str, Any], extend: ExtendOptions) -> dict[str, Any]:
    """The mixer of the same weights that attends within groups in training and to everything in evaluation."""
    if mixer["kind"] == "long_short" or mixer.get("dilation", 1) > 1:
        return mixer
    kept = {key: value for key, value in mixer.items() if key not in ("window", "dilation")}
    return kept | {"kind": "shifted_short", "group_size": extend.group_size}


def _in_full(mixer: dict[str, Any]) -> dict[str, Any]:
    """The mixer of the same weights that attends in training as it does in evaluation."""
    if mixer["kind"] != "shifted_short":
        return mixer
    return {key: value for key, value in mixer.items() if key != "group_size"} | {"kind": "attention"}
