"""Tiny models for evaluation, a tokenizer over bytes, and models whose losses are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from eval.model import Model
from lm.hf import BraidConfig, BraidForCausalLM

VOCAB, CONTEXT = 258, 128
MIXERS = {
    "global": {"kind": "attention"},
    "local": {"kind": "attention", "window": 6},
    "rat": {"kind": "rat", "chunk_size": 4},
    "ls": {"kind": "long_short", "short_heads": 2, "window": 4},
}


def byte_tokenizer(**more: Any) -> PreTrainedTokenizerFast:
    """One token a byte, then <s> and </s>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{"bos_token": "<s>", "eos_token": "</s>", "model_max_length": CONTEXT} | more
    )


def llama(**changes: Any) -> LlamaForCausalLM:
    """Two random layers, large weights so that choices are clear."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
    ends = {"bos_token_id": 256, "eos_token_id": 257}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **ends, "initializer_range": 0.3, **changes})).eval()


def hybrid(**changes: Any) -> BraidForCausalLM:
    """One layer of every mixer."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": CONTEXT}
    layers = {"mixers": MIXERS, "layers": "rat local ls global", "bos_token_id": 256, "eos_token_id": 257}
    return BraidForCausalLM(BraidConfig(**{**sizes, **layers, "initializer_range": 0.3, **changes})).eval()


MODELS: dict[str, Callable[..., PreTrainedModel]] = {"llama": llama, "hybrid": hybrid}


@pytest.fixture(params=list(MODELS))
def model(request: pytest.FixtureRequest) -> Model:
    """Each of the tiny models under evaluation."""
    return Model(MODELS[request.param](), byte_tokenizer(), request.param)


@pytest.fixture
def new_model() -> Callable[..., Model]:
    """`new_model(kind, **changes of its configuration)`."""

    def make(kind: str, **changes: Any) -> Model:
        return Model(MODELS[kind](**changes), byte_tokenizer(), kind)

    return make


@pytest.fixture(scope="session")
def save_model() -> Callable[..., None]:
    """`save_model(kind, folder, **changes)`: a model with its tokenizer, as transformers saves them."""

    def save(kind: str, folder: Any, **changes: Any) -> None:
        MODELS[kind](**changes).save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)

    return save


class Toy:
    """Has `token_nll` as `Model` has it: the loss of a token by a rule of the tokens before it in its row."""

    def __init__(self, rule: Callable[[Sequence[int], int], float]) -> None:
        self.rule = rule
        self.rows: list[list[int]] = []

    def token_nll(self, rows: Sequence[Sequence[int]]) -> list[np.ndarray]:
        self.rows += [list(row) for row in rows]
        return [np.array([self.rule(row[:place], row[place]) for place in range(1, len(row))]) for row in rows]

    @classmethod
    def uniform(cls, vocabulary: int) -> Toy:
        return cls(lambda before, token: float(np.log(vocabulary)))

    @classmethod
    def unigram(cls) -> Toy:
        """Another loss for every token, whatever stands before it."""
        return cls(lambda before, token: 0.1 + token % 7)

    @classmethod
    def markov(cls) -> Toy:
        """A loss by the token and the one before it."""
        return cls(lambda before, token: 0.5 + (3 * before[-1] + token) % 11)

    @classmethod
    def fading(cls) -> Toy:
        """A loss that falls with the number of tokens before."""
        return cls(lambda before, token: 1.0 + 1.0 / len(before))


@pytest.fixture(scope="session")
def toy() -> type[Toy]:
    """Models with known losses: `toy.unigram()`."""
    return Toy
