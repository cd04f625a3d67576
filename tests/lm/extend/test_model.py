"""The pretrained model in the trainer's form, and which of its weights are trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MistralConfig,
    OlmoConfig,
    Phi3Config,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from lm.errors import UserError
from lm.extend.adapters import add_adapters, is_norm
from lm.extend.base import plan_config, read_config, reconfigured
from lm.extend.model import extended, fingerprint
from lm.extend.options import BaseOptions, ExtendOptions, LoraOptions
from lm.hf import BraidConfig, BraidForCausalLM
from lm.model.documents import Documents
from lm.model.options import ModelOptions
from lm.train.optimizer import parameter_groups

from .conftest import HYBRID, VOCAB, llama_config, save_base

LENGTHS = (150, 40, 1, 65)
WIDTHS = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def stream() -> Tensor:
    return torch.randint(0, VOCAB, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("lora", [{"preset": "longlora"}, {"dora": True}, None], ids=["longlora", "dora", "all"])
def test_a_fresh_extension_changes_no_logit(make_extension, lora: dict[str, object] | None) -> None:
    """B starts at 0, and with rope kind none the base itself is left."""
    extension = make_extension(lora, rope={"kind": "none"})
    model = extension.build().model.eval()
    base = AutoModelForCausalLM.from_pretrained(extension.base.path).eval()
    with torch.no_grad():
        found = model(stream(), Documents.from_lengths(LENGTHS))
        expected = torch.cat([base(part[None], use_cache=False).logits[0] for part in stream().split(LENGTHS)])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_the_loss_is_that_of_the_logits(make_extension) -> None:
    model = make_extension({"preset": "longlora"}).build().model
    documents, targets = Documents.from_lengths(LENGTHS), stream().roll(-1)
    targets[::7] = -100
    found = model(stream(), documents, targets)
    nll = torch.nn.functional.cross_entropy(model(stream(), documents), targets, reduction="none")
    torch.testing.assert_close(found.token_nll, nll.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.loss, nll.sum(), atol=1e-3, rtol=1e-4)
    found.loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_training_attends_within_groups_and_evaluation_does_not(make_extension) -> None:
    shifted = make_extension({"preset": "longlora"}).build().model
    full = make_extension({"preset": "longlora"}, attention="full").build().model
    documents = Documents.from_lengths([sum(LENGTHS)])
    with torch.no_grad():
        train, evaluation = shifted.train()(stream(), documents), shifted.eval()(stream(), documents)
        torch.testing.assert_close(evaluation, full.eval()(stream(), documents))
        torch.testing.assert_close(evaluation, full.train()(stream(), documents))
    assert (train - evaluation).abs().max() > 1e-2


def test_the_preset_trains_what_longlora_trains() -> None:
    layers, width = 3, 32
    model = LlamaForCausalLM(llama_config(num_hidden_layers=layers, num_key_value_heads=4))
    add_adapters(model, LoraOptions(preset="longlora"))
    counts = {"lora": 0, "embeddings": 0, "norms": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "lora" if ".lora_" in name else "embeddings" if "embed" in name else "norms"
            counts[kind] += parameter.numel()
    assert counts == {
        "lora": layers * 4 * 8 * 2 * width,
        "embeddings": VOCAB * width,
        "norms": (2 * layers + 1) * width,
    }
    # The same closed forms give the published counts of a 7B model.
    assert (32 * 4 * 8 * 2 * 4096, 32_001 * 4096, 65 * 4096) == (8_388_608, 131_076_096, 266_240)


def test_every_kind_of_weight_has_its_learning_rate(make_extension) -> None:
    rates = {"a": 1e-3, "b": 4e-2, "embeddings": 5e-3}
    built = make_extension({"preset": "longlora", "dora": True, "learning_rates": rates}).build()
    groups = parameter_groups(built.model, 0.1, built.lr_factors)
    factor = {id(p): group["lr_factor"] for group in groups for p in group["params"]}
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(factor) == sum(len(group["params"]) for group in groups)
    for name, parameter in built.model.named_parameters():
        if not parameter.requires_grad:
            assert id(parameter) not in factor
            continue
        kind = "a" if ".lora_A." in name else "b" if ".lora_" in name else "embeddings" if "embed" in name else "norms"
        assert factor[id(parameter)] == pytest.approx({"a": 0.1, "b": 4, "embeddings": 0.5, "norms": 1}[kind]), name
        assert decay[id(parameter)] == (0.1 if kind in "ab" and parameter.ndim == 2 else 0), name


def test_a_fingerprint_names_the_frozen_weights_whatever_their_precision(make_extension) -> None:
    built = make_extension({"preset": "longlora"}).build()
    before = built.fingerprint
    with torch.no_grad():
        next(p for p in built.model.parameters() if p.requires_grad).add_(1)
    assert fingerprint(built.model) == before
    assert fingerprint(built.model.bfloat16()) == before
    with torch.no_grad():
        next(p for p in built.model.parameters() if not p.requires_grad).view(-1)[3] += 1
    assert fingerprint(built.model) != before
    assert make_extension(None).build().fingerprint == ""


@pytest.mark.parametrize(
    ("config", "norms"),
    [
        (MistralConfig(**WIDTHS, num_key_value_heads=2, sliding_window=None), 5 * 32),
        (Qwen2Config(**WIDTHS, num_key_value_heads=2), 5 * 32),
        (Qwen3Config(**WIDTHS, head_dim=8, num_key_value_heads=1), 5 * 32 + 4 * 8),
        (Phi3Config(**WIDTHS, pad_token_id=0), 5 * 32),
        (OlmoConfig(**WIDTHS), 0),
        (GPTNeoXConfig(**WIDTHS), 5 * 2 * 32),
    ],
    ids=lambda value: type(value).__name__,
)
def test_other_architectures_work_alike(config: PreTrainedConfig, norms: int) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    ids, documents = torch.arange(60), Documents.from_lengths([40, 20])
    with torch.no_grad():
        expected = torch.cat([model(part[None], use_cache=False).logits[0] for part in ids.split([40, 20])])
        wrapped = extended(model, 16)
        torch.testing.assert_close(wrapped(ids, documents), expected, atol=1e-4, rtol=1e-4)
        assert (wrapped.train()(ids, documents) - expected).abs().max() > 1e-4
    assert norms == sum(p.numel() for module in model.modules() if is_norm(module) for p in module.parameters())


def test_models_that_do_more_than_the_trainer_are_refused() -> None:
    granite = GraniteConfig(**WIDTHS, logits_scaling=8.0)
    with pytest.raises(UserError, match="GraniteForCausalLM gives other logits"):
        extended(GraniteForCausalLM(granite), 16)
    with pytest.raises(UserError, match="bias on its output head"):
        extended(PhiForCausalLM(PhiConfig(**WIDTHS)), 16)
    # The same attention, not through the interface in one layer.
    model = LlamaForCausalLM(llama_config())
    layer = model.model.layers[1].self_attn
    layer.forward = lambda hidden_states, **_: (hidden_states, None)
    with pytest.raises(UserError, match="only 1 of the 2 layers"):
        extended(model, 16)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["q_proj", "w_proj"], "'w_proj': the base has no such linear layer. Did you mean 'v_proj'"),
        (["embed_tokens"], "adapters go on linear layers other than the output head"),
        (["lm_head"], "adapters go on linear layers other than the output head"),
    ],
)
def test_targets_that_cannot_have_an_adapter_are_refused(targets: list[str], message: str) -> None:
    model = LlamaForCausalLM(llama_config())
    with pytest.raises(UserError, match=message):
        add_adapters(model, LoraOptions(targets=tuple(targets)))


def test_a_hybrid_extends_its_global_layers_only(tmp_path: Path) -> None:
    save_base("braid", tmp_path)
    config = read_config(BaseOptions(path=str(tmp_path)))
    extend = ExtendOptions(target_length=256)
    training, exported = (plan_config(config, extend, training=value).to_options() for value in (True, False))
    assert (training.mixers["global"].kind, training.mixers["global"].group_size) == ("shifted_short", 64)
    assert exported.mixers["global"].kind == "attention"
    for options in (training, exported):
        assert options.max_position_embeddings == 256
        for name in ("global", "ls"):
            assert options.mixers[name].rope_scaling.factor == 4
        for name in ("local", "rat"):
            assert options.mixers[name] == HYBRID.mixers[name]


def test_a_hybrid_is_never_extended_to_less(tmp_path: Path) -> None:
    """One without global rotary layers, too, whose angles nothing else looks at."""
    local = HYBRID.model_dump(mode="json") | {"layers": "rat local rat local"}
    options = ModelOptions.model_validate(
        local | {"mixers": {name: local["mixers"][name] for name in ("rat", "local")}}
    )
    config = BraidConfig.from_options(options)
    with pytest.raises(UserError, match=r"extend\.target_length: given 32; the model reaches 64 tokens already"):
        plan_config(config, ExtendOptions(target_length=32), training=True)


def test_full_attention_is_full_where_the_base_was_trained_in_groups() -> None:
    """The control of an extension of such a base, of the same weights."""
    options = HYBRID.model_dump(mode="json")
    options["mixers"]["global"] = {"kind": "shifted_short", "group_size": 16}
    config = BraidConfig.from_options(ModelOptions.model_validate(options))
    extend = ExtendOptions(target_length=256, attention="full")
    training, exported = (plan_config(config, extend, training=value) for value in (True, False))
    assert training.to_options().mixers["global"].kind == "attention"
    assert exported.to_options().mixers["global"].kind == "shifted_short"
    torch.manual_seed(0)
    model = BraidForCausalLM(exported).eval()
    full = reconfigured(model, training).train()
    tokens = torch.randint(VOCAB, (1, 100))
    with torch.no_grad():
        torch.testing.assert_close(full(tokens).logits, model(tokens).logits)
        assert not torch.allclose(model.train()(tokens).logits, full(tokens).logits)
