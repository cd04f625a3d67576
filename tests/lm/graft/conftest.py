"""Tiny random Llamas on disk, a run file that grafts onto them, and a few words as text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lm.extend.options import BaseOptions
from lm.graft.operation import Operation
from lm.graft.options import GraftOptions
from lm.graft.stages import graft
from lm.run_file import GraftFile, load_run_file

VOCAB, CONTEXT, LAYERS = 270, 128, 4
MakeOperation = Callable[..., Operation]
WORDS = ("seven", "quick", "brown", "foxes", "jump", "over", "a", "lazy", "dog", "while", "wizards", "box", "jugs")
RUN_FILE = """\
base: {{path: "{base}"}}
graft:
  layers: "(global local)*2"
  mixers: {{local: {{kind: attention, window: 4}}}}
  regress: {{steps: 8, global_batch_tokens: 256, optimizer: {{lr: 3.0e-3}}}}
data:
  tokenizer: {{kind: bytes}}
  sources: [{{path: "{corpus}"}}]
  sequence_length: 64
  validation: {{fraction: 0.3}}
  cache_dir: "{cache}"
train:
  output_dir: "{output}"
  steps: 4
  global_batch_tokens: 256
  micro_batch_size: 4
  checkpoint_every: 3
  sample_tokens: 2
optimizer: {{lr: 1.0e-2}}
log: {{wandb: disabled}}
"""


def save_llama(folder: Path, **changes: Any) -> None:
    """Saves a random Llama; keywords are changes to its configuration."""
    widths = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT}
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**{**widths, **heads, "initializer_range": 0.2, **changes})).save_pretrained(folder)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Llama of four layers with grouped queries and tied embeddings."""
    folder = tmp_path_factory.mktemp("llama") / "base"
    save_llama(folder, tie_word_embeddings=True)
    return folder


@pytest.fixture
def make_operation(base_folder: Path) -> MakeOperation:
    """`make_operation("(global local)*2", {"local": {...}})` on the saved Llama, or on `base`."""

    def make(layers: str, mixers: dict[str, Any] | None = None, base: Path = base_folder, **regress: Any) -> Operation:
        steps = {"steps": 4, "global_batch_tokens": 64} | regress
        graft = GraftOptions.model_validate({"layers": layers, "mixers": mixers or {}, "regress": steps})
        return Operation(BaseOptions(path=str(base)), graft)

    return make


@pytest.fixture(scope="session")
def run_path(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run file of a graft of two local layers."""
    root = tmp_path_factory.mktemp("graft")
    corpus = root / "corpus"
    corpus.mkdir()
    for index in range(12):
        words = (WORDS[(index * place + place // 5) % len(WORDS)] for place in range(30 + 40 * (index % 5)))
        (corpus / f"{index}.txt").write_text(" ".join(words))
    path = root / "graft.yaml"
    places = {"base": base_folder, "corpus": corpus, "cache": root / "cache", "output": root / "out"}
    path.write_text(RUN_FILE.format(**places))
    return path


@pytest.fixture(scope="session")
def finished(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run, both stages done; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("finished") / "out"
    run = load_run_file(run_path, [f"train.output_dir={folder}"])
    assert isinstance(run, GraftFile)
    graft(run)
    return folder
