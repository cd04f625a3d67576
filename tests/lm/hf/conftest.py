"""Small hybrids as Hugging Face models, and a tokenizer over bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lm.hf import BraidConfig, BraidForCausalLM

MIXERS = {
    "global": {"kind": "attention"},
    "local": {"kind": "attention", "window": 4},
    "rat": {"kind": "rat", "chunk_size": 4},
    "s2": {"kind": "shifted_short", "group_size": 6},
    "ls": {"kind": "long_short", "short_heads": 2, "window": 3},
    "conv": {"kind": "attention", "short_conv": 4},
    "conv_rat": {"kind": "rat", "chunk_size": 4, "short_conv": 3},
}
PATTERNS = {"four": "rat local s2 ls", "rat_local": "(rat local)*2", "global": "global*2", "conv": "conv_rat conv"}


def make_model(layers: str, **changes: Any) -> BraidForCausalLM:
    """A model in float64 and evaluation mode, large weights so that its choices are clear."""
    torch.manual_seed(0)
    config = BraidConfig(
        **{
            "vocab_size": 23,
            "hidden_size": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 64,
            "initializer_range": 0.4,
            "mixers": MIXERS,
            "layers": PATTERNS.get(layers, layers),
        }
        | changes
    )
    return BraidForCausalLM(config).double().eval()


@pytest.fixture(params=list(PATTERNS))
def pattern(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(pattern: str) -> BraidForCausalLM:
    return make_model(pattern)


@pytest.fixture
def new_model() -> Callable[..., BraidForCausalLM]:
    return make_model


@pytest.fixture(scope="session")
def byte_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    def make(**more: Any) -> PreTrainedTokenizerFast:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **more)

    return make
