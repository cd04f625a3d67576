"""Rotary positions: Llama's own, relative, exact at long range."""

from __future__ import annotations

import torch
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding, apply_rotary_pos_emb

from lm.model.rope import rope_table, rotate


def test_rotates_as_llama_does():
    config = LlamaConfig(hidden_size=64, num_attention_heads=2, max_position_embeddings=512)
    positions = torch.arange(300)
    q = torch.randn(300, 2, 32)
    cos, sin = LlamaRotaryEmbedding(config)(q, positions[None])
    expected, _ = apply_rotary_pos_emb(q.transpose(0, 1)[None], q.transpose(0, 1)[None], cos, sin)
    rotated = rotate(q, rope_table(positions, 32, 10_000.0, torch.float32))
    torch.testing.assert_close(rotated, expected[0].transpose(0, 1), atol=2e-4, rtol=0)  # theirs rounds angles


def test_long_positions_keep_their_angle():
    cos, sin = rope_table(torch.tensor([1_000_003]), 64, 10_000.0, torch.float32)
    angle = torch.tensor(1_000_003 * 10_000.0 ** (-2 * 5 / 64), dtype=torch.float64)
    assert abs(cos[0, 0, 5].double() - angle.cos()) < 1e-6
    assert abs(sin[0, 0, 5].double() - angle.sin()) < 1e-6


def test_position_zero_is_no_rotation():
    x = torch.randn(4, 3, 8)
    assert torch.equal(rotate(x, rope_table(torch.zeros(4), 8, 10_000.0, torch.float32)), x)
