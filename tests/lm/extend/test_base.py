"""What can be extended, and the refusals of what cannot, before any weight is read."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoTokenizer,
    BertConfig,
    DeepseekV3Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    T5Config,
)

import lm.extend.base
from lm.errors import UserError
from lm.extend.base import tokenizer_folder
from lm.extend.options import BaseOptions, ExtendOptions, LoraOptions
from lm.extend.trainee import Extension

from .conftest import llama_config, save_base

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def extension(folder: Path | str, target: int = 512, **base: object) -> Extension:
    options = BaseOptions.model_validate({"path": str(folder)} | base)
    return Extension(options, ExtendOptions(target_length=target), None, torch.float32, 1e-3)


def refusal(config: PreTrainedConfig, folder: Path, target: int = 512, tokens: int = 10) -> str:
    config.save_pretrained(folder)
    with pytest.raises(UserError) as error:
        extension(folder, target).check(tokens, 8)
    return str(error.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BertConfig(**SMALL, architectures=["BertForMaskedLM"]), "not a causal language model but BertForMaskedLM"),
        (T5Config(), "not a causal language model but t5"),
        (
            GPT2Config(n_embd=32, n_head=4, n_layer=2, attn_pdrop=0.0),
            "'gpt2' model has no single set of rotary positions",
        ),
        (MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=128), "sliding window of 128"),
        (
            Qwen2Config(**SMALL, num_key_value_heads=2, use_sliding_window=True, sliding_window=8, max_window_layers=1),
            "layers of type sliding_attention",
        ),
        (
            DeepseekV3Config(**SMALL, num_key_value_heads=4, first_k_dense_replace=2),
            r"latent attention (v_head_dim 128)",
        ),
        (LlamaConfig(**SMALL, attention_dropout=0.1), "attention_dropout 0.1"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_models_of_other_kinds_are_refused_by_name(config: PreTrainedConfig, message: str, tmp_path: Path) -> None:
    assert message in refusal(config, tmp_path, target=1_000_000)


def test_a_mistral_without_a_window_is_extended(tmp_path: Path) -> None:
    config = MistralConfig(**SMALL, num_key_value_heads=2, sliding_window=None, max_position_embeddings=64)
    config.save_pretrained(tmp_path)
    extension(tmp_path).check(10, 8)


def test_targets_and_tokenizers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    assert "extend.target_length: given 64; the model reaches 64" in refusal(llama_config(), tmp_path, target=64)
    message = refusal(llama_config(), tmp_path, tokens=271)
    assert message.startswith("data.tokenizer: it has 271 tokens, the base has embeddings for 270")


def test_rows_whose_angles_depend_on_their_neighbours_are_refused(tmp_path: Path) -> None:
    """Dynamic angles change where a batch holds a document longer than the model was made for."""
    angles = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    llama_config(rope_parameters=angles).save_pretrained(tmp_path)
    going_on = Extension(BaseOptions(path=str(tmp_path)), None, None, torch.float32, 1e-3)
    going_on.check(10, 64)
    with pytest.raises(UserError, match=r"data\.sequence_length: above 64 tokens.*\(dynamic\) depend.*given 65"):
        going_on.check(10, 65)


def test_places_without_a_model_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path / "none.gguf", tmp_path):
        with pytest.raises(UserError, match=rf"base.path: .*{path.name}"):
            extension(path).check(10, 8)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_four_bits_need_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"base\.quantization: nf4 needs a GPU and the package bitsandbytes"):
        extension(tmp_path, quantization="nf4").check(10, 8)


def test_the_tokenizer_of_a_base_is_its_own_folder_where_it_has_one(tmp_path: Path) -> None:
    base, cache = tmp_path / "base", tmp_path / "cache"
    llama_config().save_pretrained(base)
    with pytest.raises(UserError, match=r"data.tokenizer: .* brings none that can be read"):
        tokenizer_folder(BaseOptions(path=str(base)), cache)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (base / name).touch()
    assert tokenizer_folder(BaseOptions(path=str(base)), cache) == base


def bare_tokenizer(folder: Path, words: int) -> None:
    """A base whose folder lacks tokenizer_config.json, so that its tokenizer is written elsewhere."""
    llama_config().save_pretrained(folder)
    vocabulary = {"<s>": 0, "</s>": 1} | {f"word{i}": i + 2 for i in range(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<s>"))
    tokenizer.save(str(folder / "tokenizer.json"))


def test_a_tokenizer_that_was_written_in_part_is_written_again(tmp_path: Path) -> None:
    base, cache = BaseOptions(path=str(tmp_path / "base")), tmp_path / "cache"
    bare_tokenizer(tmp_path / "base", 20)
    file = tokenizer_folder(base, cache) / "tokenizer.json"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert tokenizer_folder(base, cache) == file.parent
    assert file.read_bytes() == whole


def test_a_tokenizer_that_several_ask_for_at_once_is_written_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Threads stand for ranks: the lock is of the open file, and each opens its own."""
    base, cache = BaseOptions(path=str(tmp_path / "base")), tmp_path / "cache"
    bare_tokenizer(tmp_path / "base", 20)
    start, made = Barrier(4), []

    def read_slowly(kind: Any, place: str, **_: Any) -> Any:
        made.append(place)
        time.sleep(0.2)
        return kind.from_pretrained(place)

    def ask(_: int) -> int:
        start.wait()
        file = tokenizer_folder(base, cache) / "tokenizer.json"
        return len(json.loads(file.read_text())["model"]["vocab"])

    monkeypatch.setattr(lm.extend.base, "from_pretrained", read_slowly)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == [22] * 4
    assert len(made) == 1


def test_a_file_that_is_replaced_has_another_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only GGUF files are single ones; what is in this one does not matter to where its tokenizer is kept."""
    bare_tokenizer(tmp_path / "base", 20)
    read = AutoTokenizer.from_pretrained(tmp_path / "base")
    monkeypatch.setattr(lm.extend.base, "from_pretrained", lambda *_, **__: read)
    file = tmp_path / "model.gguf"
    file.write_bytes(b"one")
    base = BaseOptions(path=str(file))
    first = tokenizer_folder(base, tmp_path / "cache")
    assert tokenizer_folder(base, tmp_path / "cache") == first
    file.write_bytes(b"another")
    assert tokenizer_folder(base, tmp_path / "cache") != first


@pytest.mark.parametrize("kind", ["tied", "braid"])
def test_targets_that_the_base_does_not_have_are_refused_before_data_is_read(kind: str, tmp_path: Path) -> None:
    save_base(kind, tmp_path)
    lora = LoraOptions(targets=("w_proj",))
    tuned = Extension(BaseOptions(path=str(tmp_path)), ExtendOptions(target_length=256), lora, torch.float32, 1e-3)
    with pytest.raises(UserError, match=r"lora\.targets: 'w_proj': the base has no such linear layer"):
        tuned.check(10, 8)
