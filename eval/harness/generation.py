"""What the harness' tasks ask of a written text, and what of it there is here: the likeliest tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from lm.errors import UserError

DEFAULT_MAX_GEN_TOKS = 256
"""Tokens to write where a task does not say, as for the harness' `hf` type."""
_GREEDY_KEYS = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}


@dataclass(frozen=True)
class Wanted:
    """How a text is to be continued, by the likeliest tokens."""

    max_new_tokens: int
    stop: tuple[str, ...]


def wanted(given: Mapping[str, Any], max_length: int) -> Wanted:
    """A task's generation arguments.

    Raises UserError for drawn tokens, for arguments that do not exist here, and for more tokens than `max_length` has
    room for beside a prompt.
    """
    asked = normalize_gen_kwargs(dict(given), DEFAULT_MAX_GEN_TOKS)
    if asked["do_sample"]:
        raise UserError(
            f"a task asks for drawn tokens ({given}), and here the likeliest ones are written: set do_sample to false "
            "among the generation arguments"
        )
    for name in sorted(asked.keys() - _GREEDY_KEYS):
        raise UserError(f"a task asks for generation with '{name}', which does not exist here: {given}")
    if asked["max_gen_toks"] >= max_length:
        raise UserError(
            f"a task asks for {asked['max_gen_toks']} new tokens (max_gen_toks), which leave no room for a prompt in a "
            f"context of {max_length}: set a smaller max_gen_toks among the generation arguments"
        )
    return Wanted(asked["max_gen_toks"], tuple(word for word in asked["until"] if word))
