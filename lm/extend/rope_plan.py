"""From the rotary positions of a pretrained model and a longer context to the positions of the extended model.

A pure function of the configuration. Parameters are transformers' `rope_parameters`, and what they mean is its own rope
functions' affair: tests compare the frequencies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lm.errors import UserError
from lm.extend.options import RopeOptions

ORIGINAL = "original_max_position_embeddings"
LENGTH_DEPENDENT = ("dynamic", "longrope")
"""Types whose angles depend on the longest of the positions at hand: they cannot be trained once and kept."""


@dataclass(frozen=True)
class RopePlan:
    """What the extended configuration says: `rope_parameters` and `max_position_embeddings`."""

    parameters: dict[str, Any]
    max_position_embeddings: int


def covered_context(parameters: Mapping[str, Any], max_position_embeddings: int, original: int | None = None) -> int:
    """Tokens that a model's angles are made for.

    original: `original_max_position_embeddings` of the configuration outside its rope parameters. YaRN's factor counts
    from the original context, whether max_position_embeddings was raised (as here) or not (as in Qwen's recipes).
    Linear positions of a model that states another original context than max_position_embeddings reach the latter;
    elsewhere the factor counts on top (that is how LongLoRA's and LongChat's models are published).
    """
    original = original or parameters.get(ORIGINAL)
    factor = parameters.get("factor") or 1.0
    kind = parameters.get("rope_type")
    if kind == "yarn":
        return max(max_position_embeddings, int((original or max_position_embeddings) * factor))
    if original is None or (kind == "linear" and original == max_position_embeddings):
        return int(max_position_embeddings * factor)
    return max_position_embeddings


def fixed_until(parameters: Mapping[str, Any], max_position_embeddings: int) -> int | None:
    """Tokens of the longest rows whose angles do not depend on their length; None where those of no row do."""
    if parameters.get("rope_type") not in LENGTH_DEPENDENT:
        return None
    return int(parameters.get(ORIGINAL) or max_position_embeddings)


def check_target(reached: int, options: RopeOptions, target_length: int) -> None:
    """Raises UserError for a target that is no extension of the `reached` tokens.

    A target of as many is a further stage at the same length, for which angles stay as they are.
    """
    if target_length < reached or (target_length == reached and options.kind != "none"):
        stay = ", or set extend.rope.kind to none to train on at this length" if target_length == reached else ""
        raise UserError(
            f"extend.target_length: given {target_length}; the model reaches {reached} tokens already: "
            f"ask for more{stay}"
        )


def plan_rope(
    parameters: Mapping[str, Any], covered: int, rotary_dim: int, options: RopeOptions, target_length: int
) -> RopePlan:
    """The rope parameters that carry a model from `covered` tokens to `target_length`.

    parameters: the model's own. rotary_dim: rotated channels of a head. target_length: see `check_target`.
    Raises UserError for a factor too small for it, and kinds that do not combine.
    """
    growth = options.factor or _growth(options.kind, target_length / covered)
    if covered * growth < target_length and options.kind not in ("theta", "none"):
        raise UserError(
            f"extend.rope.factor: {growth:g} times the {covered} tokens of the model are less than "
            f"extend.target_length {target_length}: use {math.ceil(target_length / covered)} or leave it out"
        )
    before = str(parameters.get("rope_type", "default"))
    if before not in _COMBINES[options.kind]:
        known = [kind for kind, befores in _COMBINES.items() if before in befores]
        raise UserError(
            f"extend.rope.kind: {options.kind} does not combine with the model's own rope type '{before}'; "
            + (f"these do: {', '.join(known)}" if known else "no kind does")
        )
    planned = _PLANS[options.kind](dict(parameters), growth, covered, rotary_dim, options)
    return RopePlan(planned, target_length)


def _growth(kind: str, ratio: float) -> float:
    # transformers takes YaRN's factor for the exact ratio of the contexts; for the others a whole number is usual.
    return ratio if kind == "yarn" else float(math.ceil(ratio))


def _linear(
    parameters: dict[str, Any], growth: float, covered: int, rotary_dim: int, options: RopeOptions
) -> dict[str, Any]:
    return parameters | {"rope_type": "linear", "factor": parameters.get("factor", 1.0) * growth}


def _ntk(
    parameters: dict[str, Any], growth: float, covered: int, rotary_dim: int, options: RopeOptions
) -> dict[str, Any]:
    # The lowest frequency theta^(-(d-2)/d) becomes 1/growth of what it was, the highest stays 1.
    theta = parameters["rope_theta"] * growth ** (rotary_dim / (rotary_dim - 2))
    return parameters | {"rope_type": "default", "rope_theta": theta}


def _yarn(
    parameters: dict[str, Any], growth: float, covered: int, rotary_dim: int, options: RopeOptions
) -> dict[str, Any]:
    factor = parameters.get("factor", 1.0) * growth
    parameters.pop("attention_factor", None)  # follows from the factor
    return {ORIGINAL: covered} | parameters | {"rope_type": "yarn", "factor": factor}


def _theta(
    parameters: dict[str, Any], growth: float, covered: int, rotary_dim: int, options: RopeOptions
) -> dict[str, Any]:
    return parameters | {"rope_theta": options.theta}


def _unchanged(
    parameters: dict[str, Any], growth: float, covered: int, rotary_dim: int, options: RopeOptions
) -> dict[str, Any]:
    return parameters


_PLANS: dict[str, Callable[[dict[str, Any], float, int, int, RopeOptions], dict[str, Any]]] = {
    "linear": _linear,
    "ntk": _ntk,
    "yarn": _yarn,
    "theta": _theta,
    "none": _unchanged,
}
_COMBINES: dict[str, tuple[str, ...]] = {
    "linear": ("default", "linear"),
    "ntk": ("default",),
    "yarn": ("default", "yarn"),
    "theta": ("default", "linear", "yarn", "llama3"),
    "none": ("default", "linear", "yarn", "llama3"),
}
