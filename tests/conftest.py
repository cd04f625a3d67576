"""What tests of more than one room start from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Without a GPU, Triton's kernels are checked in its interpreter; Triton asks when it is first imported.
    os.environ["TRITON_INTERPRET"] = "1"

from transformers import LlamaConfig


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the published configuration of SmolLM2-135M, without its weights."""
    folder = tmp_path_factory.mktemp("smollm2")
    LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000},
        tie_word_embeddings=True,
    ).save_pretrained(folder)
    return folder
