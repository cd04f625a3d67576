"""What a graft leaves alone, what it copies and draws, and what it refuses by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, Qwen3Config, Qwen3ForCausalLM

from lm.errors import UserError
from lm.graft.operation import Operation
from lm.hf import BraidConfig, BraidForCausalLM
from lm.model.options import ModelOptions

from .conftest import CONTEXT, VOCAB, save_llama

LOCAL = {"local": {"kind": "attention", "window": 4}}


def test_layers_of_another_mixer_are_grafted_and_the_rest_is_the_bases(make_operation, base_folder: Path) -> None:
    operation = make_operation("local global rat global", LOCAL)
    assert operation.layers == (0, 2)
    weights = operation.weights()
    original, grafted = operation.original(weights), operation.grafted(weights, seed=0)
    theirs = AutoModelForCausalLM.from_pretrained(base_folder)
    tokens = torch.arange(60)[None]
    with torch.no_grad():
        torch.testing.assert_close(original(tokens).logits, theirs(tokens).logits, atol=1e-5, rtol=1e-5)
    own, state = dict(original.named_parameters()), dict(grafted.named_parameters())
    for name, tensor in state.items():
        if "layers.2.mixer" in name and "o_proj" not in name:
            assert name not in own or tensor.shape != own[name].shape or not torch.equal(tensor, own[name])
        else:
            assert torch.equal(tensor, own[name]), name
        # What stage one trains must not be the original's own memory.
        shared = name in own and tensor.data_ptr() == own[name].data_ptr()
        assert shared == (not name.startswith(("model.layers.0.mixer", "model.layers.2.mixer")))


def test_a_definition_that_says_the_same_is_no_graft(make_operation) -> None:
    same = {"full": {"kind": "attention"}, "other": {"kind": "attention", "sink": True}}
    assert make_operation("full global other full", same).layers == (2,)


def test_norms_and_biases_of_the_base_are_inherited(make_operation, tmp_path: Path) -> None:
    widths = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": VOCAB, "head_dim": 8}
    config = Qwen3Config(**widths, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=CONTEXT)
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    operation = make_operation("global local", LOCAL, base=tmp_path)
    assert operation.after.mixers["local"].qk_norm
    assert operation.after.mixers["local"].window == 4


def test_a_braid_model_is_a_base_too(make_operation, tmp_path: Path) -> None:
    options = ModelOptions.model_validate(
        {
            "vocab_size": VOCAB,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "max_position_embeddings": CONTEXT,
            "mixers": {"rat": {"kind": "rat", "chunk_size": 4}, "global": {"kind": "attention", "short_conv": 3}},
            "layers": "rat global rat global",
        }
    )
    torch.manual_seed(0)
    model = BraidForCausalLM(BraidConfig.from_options(options)).eval()
    with torch.no_grad():
        for block in model.model.blocks[1::2]:
            block.short_conv.weight.normal_()
    model.save_pretrained(tmp_path)
    operation = make_operation("rat local rat global", LOCAL, base=tmp_path)
    assert operation.layers == (1,)
    weights = operation.weights()
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        assert torch.equal(operation.original(weights)(tokens).logits, model(tokens).logits)
    grafted = operation.grafted(weights, seed=0)
    assert grafted.model.blocks[1].short_conv is None
    assert torch.equal(grafted.model.blocks[3].short_conv.weight, model.model.blocks[3].short_conv.weight)
    assert torch.equal(grafted.model.blocks[0].mixer.q_proj.weight, model.model.blocks[0].mixer.q_proj.weight)


def refusal(operation: Operation, tokens: int = 10, length: int = 64) -> str:
    with pytest.raises(UserError) as error:
        operation.check(tokens, length)
    return str(error.value)


@pytest.mark.parametrize(
    ("layers", "mixers", "message"),
    [
        ("(global local)*3", LOCAL, r"graft.layers: '(global local)*3' has 6 layers, the model has 4"),
        ("global lokal local local", LOCAL, "Did you mean 'local'"),
        ("global*4", {}, "is what the base has already"),
        ("r*4", {"r": {"kind": "rat", "qk_groups": 3}}, "mixers.r: qk_groups 3 must divide"),
        ("ls*4", {"ls": {"kind": "long_short", "short_heads": 3, "window": 4}}, "mixers.ls: short_heads 3"),
        ("s2*4", {"s2": {"kind": "shifted_short", "group_size": 8}}, "graft.mixers.s2: shifted_short cannot take"),
    ],
)
def test_patterns_and_mixers_that_do_not_fit(make_operation, layers: str, mixers: dict, message: str) -> None:
    found = refusal(make_operation(layers, mixers))
    assert found.startswith("graft.")
    assert message in found


def test_bases_that_do_not_fit(make_operation, tmp_path: Path) -> None:
    GPT2Config(n_embd=32, n_head=4, n_layer=4, vocab_size=VOCAB).save_pretrained(tmp_path / "gpt2")
    found = refusal(make_operation("(global local)*2", base=tmp_path / "gpt2"))
    assert found.startswith("base.path: ")
    assert "'gpt2' model has no counterpart here" in found
    save_llama(tmp_path / "llama")
    operation = make_operation("(global local)*2", LOCAL, base=tmp_path / "llama")
    assert refusal(operation, tokens=VOCAB + 1).startswith("data.tokenizer: it has 271 tokens")
    assert "rows of 129 exceed the base's context of 128" in refusal(operation, length=CONTEXT + 1)
