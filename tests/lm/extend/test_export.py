"""Adapter, merged model and reloaded folders are one function, beyond the original context too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from lm.data.tokenizers import BytesTokenizer
from lm.errors import UserError
from lm.extend.base import plan_config, reconfigured
from lm.extend.export import base_model, export_adapter, export_merged, merged_model, plain_model
from lm.extend.trainee import Extension
from lm.hf.export import Training
from lm.model.documents import Documents

TARGET = 256
CHOICES = {
    "longlora": {"preset": "longlora"},
    "lora": {"rank": 3},
    "rslora": {"preset": "longlora", "rslora": True, "rank": 4},
    "dora": {"dora": True, "targets": "all-linear"},
}


def trained(extension: Extension, seed: int = 0) -> tuple[dict[str, Tensor], Tensor]:
    """Weights that moved from where they began, by name, and the logits of TARGET tokens with them."""
    torch.manual_seed(seed)
    model = extension.build().model
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
        logits = model.eval()(tokens(), Documents.from_lengths([TARGET]))
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}, logits


def tokens() -> Tensor:
    return torch.randint(0, 256, (TARGET,), generator=torch.Generator().manual_seed(5))


def logits_of(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model.eval()(tokens()[None]).logits[0]


def close(a: Tensor, b: Tensor) -> None:
    assert (a - b).abs().max() < 1e-5 * b.abs().max()


@pytest.mark.parametrize("choice", [*CHOICES, None])
def test_trained_merged_and_reloaded_are_equal(make_extension, choice: str | None, tmp_path: Path) -> None:
    extension = make_extension(CHOICES.get(choice))
    weights, expected = trained(extension)
    export_merged(tmp_path / "model", extension, weights, BytesTokenizer(), Training(1, 1))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.config.max_position_embeddings == TARGET
    assert model.config._attn_implementation == "sdpa" or model.config.model_type == "braid"
    close(logits_of(model), expected)


@pytest.mark.parametrize("base_folder", ["tied", "untied"], indirect=True)
@pytest.mark.parametrize("kind", ["linear", "ntk", "yarn"])
def test_a_folder_says_by_itself_what_the_model_is(make_extension, kind: str, tmp_path: Path) -> None:
    """No other key, code or flag is needed: plain transformers takes positions, length and vocabulary from it."""
    extension = make_extension(CHOICES["longlora"], rope={"kind": kind})
    weights, _ = trained(extension)
    export_merged(tmp_path, extension, weights, BytesTokenizer(), Training(1, 1))
    planned = plan_config(extension.config, extension.extend, training=False)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "llama"
    assert "auto_map" not in config
    assert not list(tmp_path.glob("*.py"))
    assert config["rope_parameters"] == planned.rope_parameters
    assert config["max_position_embeddings"] == TARGET
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert torch.equal(model.model.rotary_emb.inv_freq, LlamaRotaryEmbedding(planned).inv_freq)
    assert tokenizer.model_max_length == TARGET
    # The embedding keeps the base's rows, of which the tokenizer may use fewer.
    rows = model.get_input_embeddings().weight.shape[0]
    assert len(tokenizer) <= rows == config["vocab_size"] == extension.config.vocab_size
    assert model.generation_config.eos_token_id is not None


@pytest.mark.parametrize("choice", CHOICES)
def test_an_adapter_folder_is_the_same_model(make_extension, choice: str, tmp_path: Path) -> None:
    extension = make_extension(CHOICES[choice])
    weights, expected = trained(extension)
    export_adapter(tmp_path, extension, weights)
    config = AutoConfig.from_pretrained(tmp_path)
    fresh = AutoModelForCausalLM.from_pretrained(extension.base.path, config=config)
    model = PeftModel.from_pretrained(fresh, tmp_path)
    close(logits_of(model), expected)
    close(logits_of(model.merge_and_unload()), expected)


def test_the_adapter_holds_what_was_trained_and_no_more(make_extension, tmp_path: Path) -> None:
    extension = make_extension(CHOICES["longlora"])
    weights, _ = trained(extension)
    export_adapter(tmp_path, extension, weights)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    original = load_file(Path(extension.base.path) / "model.safetensors")
    kept = {name for name in saved if ".lora_" not in name}
    whole = {name for name in weights if ".lora_" not in name}
    assert len(saved) - len(kept) == len(weights) - len(whole)
    for name in whole:
        plain = name.removeprefix("model.")
        assert not torch.equal(saved[f"base_model.model.{plain}"], original[plain])
    # A tied head is stored beside its embedding.
    assert len(kept) - len(whole) == int(extension.config.tie_word_embeddings)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 16 / 4), (True, 16 / 4**0.5)])
def test_merging_adds_the_scaled_product(make_extension, rslora: bool, scale: float) -> None:
    extension = make_extension({"rank": 4, "rslora": rslora})
    weights, _ = trained(extension)
    merged = dict(merged_model(extension, weights).named_parameters())
    original = load_file(Path(extension.base.path) / "model.safetensors")
    adapted = [name for name in weights if ".lora_A." in name]
    assert adapted
    for a in adapted:
        name = a.removeprefix("model.").replace(".lora_A.default", "")
        product = weights[a.replace("lora_A", "lora_B")] @ weights[a]
        torch.testing.assert_close(merged[name] - original[name], scale * product, atol=1e-5, rtol=1e-5)


def test_loaded_weights_serve_several_configurations(make_extension) -> None:
    extension = make_extension(None)
    loaded = base_model(extension, extension.config)
    expected, before = logits_of(plain_model(extension)), logits_of(loaded)
    found = reconfigured(loaded, plan_config(extension.config, extension.extend, training=False))
    assert torch.equal(logits_of(found), expected)
    assert not torch.equal(expected, before)
    assert torch.equal(logits_of(reconfigured(found, extension.config)), before)
    assert {p.data_ptr() for p in found.parameters()} == {p.data_ptr() for p in loaded.parameters()}
    assert found.num_parameters() == loaded.num_parameters(), "tied weights stay one"


def test_a_whole_model_is_no_adapter(make_extension, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no lora section"):
        export_adapter(tmp_path, make_extension(None), {})


def test_weights_of_another_run_are_refused(make_extension) -> None:
    weights, _ = trained(make_extension({"rank": 4}))
    with pytest.raises(UserError, match="are not those"):
        merged_model(make_extension({"preset": "longlora"}), weights)
