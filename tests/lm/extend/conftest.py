"""Tiny random Llamas on disk, and Braid hybrids, to be extended from 64 tokens to 256."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lm.extend.options import BaseOptions, ExtendOptions, LoraOptions
from lm.extend.trainee import Extension
from lm.hf import BraidConfig, BraidForCausalLM
from lm.model.options import ModelOptions

VOCAB, ORIGINAL, TARGET = 270, 64, 256
HYBRID = ModelOptions.model_validate(
    {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "max_position_embeddings": ORIGINAL,
        "initializer_range": 0.2,
        "mixers": {
            "rat": {"kind": "rat", "chunk_size": 4},
            "local": {"kind": "attention", "window": 8},
            "global": {"kind": "attention"},
            "ls": {"kind": "long_short", "short_heads": 2, "window": 4},
        },
        "layers": "rat local ls global",
    }
)
MakeExtension = Callable[..., Extension]


def llama_config(**changes: object) -> LlamaConfig:
    widths = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": ORIGINAL}
    return LlamaConfig(**{**widths, **heads, "initializer_range": 0.2, **changes})


def save_base(kind: str, folder: Path) -> None:
    """Saves a Llama with tied or untied embeddings, or a Braid hybrid."""
    torch.manual_seed(1)
    if kind == "braid":
        BraidForCausalLM(BraidConfig.from_options(HYBRID)).save_pretrained(folder)
    else:
        LlamaForCausalLM(llama_config(tie_word_embeddings=kind == "tied")).save_pretrained(folder)


@pytest.fixture(scope="session", params=["tied", "untied", "braid"])
def base_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model."""
    folder = tmp_path_factory.mktemp(request.param) / "base"
    save_base(request.param, folder)
    return folder


@pytest.fixture
def make_extension(base_folder: Path) -> MakeExtension:
    """An extension of the saved model; keywords are the options of its sections."""

    def make(lora: dict[str, object] | None = None, **extend: object) -> Extension:
        options = None if lora is None else LoraOptions.model_validate(lora)
        target = ExtendOptions.model_validate({"target_length": TARGET} | extend)
        return Extension(BaseOptions(path=str(base_folder)), target, options, torch.float32, 1e-2)

    return make


WORDS = ("seven", "quick", "brown", "foxes", "jump", "over", "a", "lazy", "dog", "while", "wizards", "box", "jugs")
RUN_FILE = """\
base: {{path: "{base}"}}
extend: {{target_length: 256, group_size: 16}}
lora: {{preset: longlora, learning_rates: {{b: 4.0e-2}}}}
data:
  tokenizer: {{kind: bytes}}
  sources: [{{path: "{corpus}"}}]
  sequence_length: 128
  validation: {{fraction: 0.3}}
  cache_dir: "{cache}"
train:
  output_dir: "{output}"
  steps: 8
  global_batch_tokens: 512
  micro_batch_size: 2
  checkpoint_every: 4
  sample_tokens: 4
optimizer: {{lr: 1.0e-2}}
log: {{wandb: disabled}}
"""


def write_run(base: Path, folder: Path) -> Path:
    """The run file of an extension of `base`, with a few words as text, all below `folder`."""
    corpus = folder / "corpus"
    corpus.mkdir()
    for index in range(24):
        words = (WORDS[(index * place + place // 5) % len(WORDS)] for place in range(30 + 40 * (index % 5)))
        (corpus / f"{index}.txt").write_text(" ".join(words))
    path = folder / "extend.yaml"
    places = {"base": base, "corpus": corpus, "cache": folder / "cache", "output": folder / "out"}
    path.write_text(RUN_FILE.format(**places))
    return path


@pytest.fixture
def run_path(base_folder: Path, tmp_path: Path) -> Path:
    """The run file of an extension of the saved model."""
    return write_run(base_folder, tmp_path)
