"""Rotary positions: Llama's own, relative, exact at long range."""

from __future__ import annotations

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaConfig, LlamaRotaryEmbedding, apply_rotary_pos_emb

from lm.model.rope import RopeScaling, rope_table, rotate


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


SCALINGS = [
    {"rope_type": "linear", "factor": 8.0},
    {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
    {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": False},
    {
        "rope_type": "yarn",
        "factor": 16.0,
        "original_max_position_embeddings": 512,
        "attention_factor": 0.7,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
    },
]


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize(("head_dim", "theta"), [(64, 10_000.0), (128, 500_000.0)])
def test_scaled_as_transformers_scales(scaling, head_dim, theta):
    config = LlamaConfig(
        hidden_size=2 * head_dim,
        num_attention_heads=2,
        max_position_embeddings=131_072,
        rope_parameters=scaling | {"rope_theta": theta},
    )
    frequencies, amplitude = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config)
    options = TypeAdapter(RopeScaling).validate_python(scaling)
    assert options.amplitude == pytest.approx(amplitude)
    plain = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    torch.testing.assert_close(options.scale(plain, theta), frequencies.double(), rtol=2e-6, atol=0)
    cos, sin = rope_table(torch.tensor([3]), head_dim, theta, torch.float64, options)
    torch.testing.assert_close(cos[0, 0], (3 * frequencies.double()).cos() * amplitude, rtol=0, atol=1e-5)
    torch.testing.assert_close(sin[0, 0], (3 * frequencies.double()).sin() * amplitude, rtol=0, atol=1e-5)


def test_llama3_needs_an_order_of_its_frequencies():
    with pytest.raises(ValidationError, match="high_freq_factor must exceed low_freq_factor"):
        TypeAdapter(RopeScaling).validate_python(SCALINGS[1] | {"high_freq_factor": 1.0})


def test_yarn_blends_between_fewer_turns_and_more():
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    with pytest.raises(ValidationError, match=r"beta_fast 1\.0 is below beta_slow 32\.0"):
        TypeAdapter(RopeScaling).validate_python(yarn | {"beta_fast": 1.0, "beta_slow": 32.0})
