"""Braid's own attention in place of a pretrained model's: for counting, and for ranks that share a row."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedConfig

from lm.model.decoder import LanguageModel
from lm.model.mixers import SoftmaxMixer
from lm.model.options import ModelOptions


def stand_in(config: PreTrainedConfig, group_size: int | None) -> SoftmaxMixer[Any]:
    """Braid's mixer with the heads and the reach of one of the base's layers, without weights.

    group_size: of shifted-short attention; None: everything is seen.
    """
    with torch.device("meta"):
        mixer = LanguageModel(stand_in_options(config, group_size)).model.mixers[0]
    assert isinstance(mixer, SoftmaxMixer)
    return mixer


def stand_in_options(config: PreTrainedConfig, group_size: int | None) -> ModelOptions:
    """A model of one such layer."""
    kind = {"kind": "attention"} if group_size is None else {"kind": "shifted_short", "group_size": group_size}
    heads = config.num_attention_heads
    return ModelOptions.model_validate(
        {
            "vocab_size": 2,
            "hidden_size": config.hidden_size,
            "num_attention_heads": heads,
            "num_key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
            "head_dim": getattr(config, "head_dim", None),
            "mixers": {"attention": kind},
            "layers": "attention",
        }
    )
