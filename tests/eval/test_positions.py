from __future__ import annotations

import pytest
from transformers import Gemma3TextConfig, GPT2Config, LlamaConfig, PreTrainedConfig, RecurrentGemmaConfig

from eval.positions import fixed_angles

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (GPT2Config(), None),
        (RecurrentGemmaConfig(), None),
        (LlamaConfig(rope_parameters=PLAIN), None),
        (LlamaConfig(rope_parameters=DYNAMIC, max_position_embeddings=64), 64),
        (
            Gemma3TextConfig(
                rope_parameters={"full_attention": DYNAMIC, "sliding_attention": PLAIN}, max_position_embeddings=64
            ),
            64,
        ),
    ],
)
def test_how_far_angles_are_fixed_is_read_from_every_kind_of_layer(config: PreTrainedConfig, limit: int | None) -> None:
    assert fixed_angles(config) == limit
