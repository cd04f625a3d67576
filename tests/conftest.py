"""What tests of more than one room start from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    # Without a GPU, Triton's kernels are checked in its interpreter; Triton asks when it is first imported.
    os.environ["TRITON_INTERPRET"] = "1"

# The suite runs on plain PyTorch, whatever this machine has built; tests of the C++ kernels build their own.
os.environ["BRAID_KERNELS"] = os.devnull

from transformers import LlamaConfig

from kernels.native import library


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


@pytest.fixture(scope="session")
def built_kernels() -> Path:
    """The folder of the C++ kernels, compiled from this tree if they are not there already: in a few seconds."""
    if library.compiler() is None:
        pytest.skip("there is no C++ compiler")
    folder = Path(__file__).parents[1] / "build" / "kernels"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(library.FOLDER, os.fspath(folder))
        library.build()
    return folder


@pytest.fixture
def cpp_kernels(built_kernels: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """While it lasts, the C++ kernels are built."""
    monkeypatch.setenv(library.FOLDER, os.fspath(built_kernels))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """While it lasts, torch makes float64 of what is asked for without a type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
