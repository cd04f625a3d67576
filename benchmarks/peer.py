"""The model that Braid's whole models are measured beside: a transformers Llama with random weights."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.measure import device

WIDTH, HEADS, VOCAB = 512, 8, 8192
"""The shape that both sides have; weights of embedding and head are tied."""


def llama(layers: int, intermediate_size: int, positions: int, use_cache: bool) -> LlamaForCausalLM:
    """In fp32 with SDPA attention, as transformers has it. positions: the longest context."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=intermediate_size,
        num_attention_heads=HEADS,
        num_hidden_layers=layers,
        max_position_embeddings=positions,
        tie_word_embeddings=True,
        use_cache=use_cache,
    )
    return LlamaForCausalLM(config).to(device())
