"""BraidForCausalLM as transformers' users call it: padding, packing, loss, checkpointing, saving."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from safetensors import safe_open
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from lm.hf import BraidCache, BraidConfig, BraidForCausalLM, BraidModel
from lm.model.documents import Documents
from lm.model.mixers import MIXERS

TOKENS = torch.randint(0, 23, (3, 14), generator=torch.Generator().manual_seed(0))
CLOSE = {"atol": 1e-10, "rtol": 1e-10}


@pytest.mark.parametrize(
    "kept", [[(0, 14), (0, 5), (0, 1)], [(9, 14), (0, 14), (13, 14)], [(2, 9), (0, 14), (5, 13)]], ids=str
)
def test_padding_on_any_side_changes_nothing(model, kept):
    mask = torch.zeros_like(TOKENS)
    for row, (start, end) in enumerate(kept):
        mask[row, start:end] = 1
    logits = model(TOKENS, attention_mask=mask).logits
    for row, (start, end) in enumerate(kept):
        torch.testing.assert_close(logits[row, start:end], model(TOKENS[row : row + 1, start:end]).logits[0], **CLOSE)


def test_positions_that_start_anew_are_documents_of_their_own(model):
    lengths = [[5, 9], [14], [1, 3, 10]]
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in lengths])
    logits = model(TOKENS, position_ids=positions).logits
    for row, cuts in enumerate(lengths):
        alone = [model(piece[None]).logits[0] for piece in TOKENS[row].split(cuts)]
        torch.testing.assert_close(logits[row], torch.cat(alone), **CLOSE)
    for asked in ({"use_cache": True}, {"past_key_values": BraidCache()}):
        with pytest.raises(ValueError, match="packed documents cannot be cached"):
            model(TOKENS, position_ids=positions, **asked)


def test_documents_are_packed_whatever_the_configuration_says_of_caches(model):
    assert model.config.use_cache
    out = model.model(TOKENS[:1], documents=Documents.from_lengths([5, 9]))
    assert out.past_key_values is None
    alone = [model.model(piece).last_hidden_state for piece in TOKENS[:1].split([5, 9], dim=1)]
    torch.testing.assert_close(out.last_hidden_state, torch.cat(alone, 1), **CLOSE)
    with pytest.raises(ValueError, match="packed documents cannot be cached"):
        model.model(TOKENS[:1], documents=Documents.from_lengths([14]), past_key_values=BraidCache())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("rows", [31, 11])
def test_the_vocabulary_is_resized(new_model, tied, rows):
    model = new_model("rat global", tie_word_embeddings=tied)
    before, kept = model(TOKENS % 11).logits, min(rows, 23)
    model.resize_token_embeddings(rows)
    logits = model(TOKENS % 11).logits
    assert logits.shape[-1] == rows == model.config.vocab_size
    torch.testing.assert_close(logits[..., :kept], before[..., :kept], **CLOSE)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


def test_packed_and_padded(model):
    mask = torch.ones_like(TOKENS)
    mask[:, :2], mask[:, 12:] = 0, 0
    positions = torch.tensor([0, 0, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 0, 0]).expand(3, -1)
    logits = model(TOKENS, attention_mask=mask, position_ids=positions).logits
    for row in range(3):
        for start, end in ((2, 6), (6, 12)):
            alone = model(TOKENS[row : row + 1, start:end]).logits[0]
            torch.testing.assert_close(logits[row, start:end], alone, **CLOSE)


def test_embeddings_instead_of_tokens(model):
    embedded = model.get_input_embeddings()(TOKENS)
    torch.testing.assert_close(model(inputs_embeds=embedded).logits, model(TOKENS).logits, **CLOSE)
    with pytest.raises(ValueError, match="exactly one"):
        model(input_ids=TOKENS, inputs_embeds=embedded)


@pytest.mark.parametrize("keep", [1, 4, torch.tensor([0, 3, 13])], ids=str)
def test_logits_to_keep(model, keep):
    index = slice(-keep, None) if isinstance(keep, int) else keep
    torch.testing.assert_close(model(TOKENS, logits_to_keep=keep).logits, model(TOKENS).logits[:, index], **CLOSE)


def test_the_loss_of_labels(model):
    labels = TOKENS.clone()
    labels[1, 5:9] = -100
    out = model(TOKENS, labels=labels)
    nll = F.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    counted = labels[:, 1:].ne(-100).sum()
    torch.testing.assert_close(out.loss.double(), nll.sum() / counted, atol=1e-6, rtol=1e-6)
    scaled = model(TOKENS, labels=labels, num_items_in_batch=10).loss
    torch.testing.assert_close(scaled.double(), nll.sum() / 10, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputed_activations_give_the_same_gradients(new_model, pattern, every, reentrant):
    gradients = []
    for recompute in (False, True):
        model = new_model(pattern).train()
        if recompute:
            model.activation_checkpointing_enable(
                activation_checkpointing_kwargs={"use_reentrant": reentrant}, every_n_layers=every
            )
            assert model.model.checkpoint_every == every
        model(TOKENS, labels=TOKENS).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_hidden_states_are_what_enters_each_layer_and_the_end(model):
    out = model(TOKENS, output_hidden_states=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    torch.testing.assert_close(out.hidden_states[0], model.get_input_embeddings()(TOKENS), **CLOSE)
    torch.testing.assert_close(out.logits, model.lm_head(out.hidden_states[-1]), **CLOSE)


def test_matrices_of_attention_do_not_exist(model):
    with pytest.raises(ValueError, match="never form a matrix"):
        model(TOKENS, output_attentions=True)
    with pytest.raises(ValueError, match=r"attention_mask must be \[rows, tokens\]"):
        model(TOKENS, attention_mask=torch.ones(3, 1, 14, 14))


@pytest.mark.parametrize("shard", ["5KB", "1GB"])
@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded_again(new_model, pattern, tmp_path, tied, shard):
    model = new_model(pattern, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert (len(files) > 1) == (shard == "5KB")
    saved = {name for file in files for name in safe_open(file, "pt").keys()}  # noqa: SIM118 - no mapping
    assert ("lm_head.weight" in saved) == (not tied)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert isinstance(loaded, BraidForCausalLM)
    assert loaded.dtype == torch.float64
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    before = model.state_dict()
    assert all(torch.equal(weight, before[name]) for name, weight in loaded.state_dict().items())
    torch.testing.assert_close(loaded(TOKENS).logits, model(TOKENS).logits, **CLOSE)
    assert AutoConfig.from_pretrained(tmp_path).to_options() == model.config.to_options()
    backbone = AutoModel.from_pretrained(tmp_path)
    assert isinstance(backbone, BraidModel)
    hidden = backbone(TOKENS).last_hidden_state
    torch.testing.assert_close(hidden, model.model(TOKENS).last_hidden_state, **CLOSE)


def test_weights_that_a_file_lacks_are_drawn_and_the_others_kept(new_model, tmp_path):
    new_model("global*4").save_pretrained(tmp_path)
    config = new_model("rat local global conv").config
    loaded, info = BraidForCausalLM.from_pretrained(
        tmp_path, config=config, output_loading_info=True, ignore_mismatched_sizes=True
    )
    assert "model.layers.0.mixer.forget_proj.bias" in info["missing_keys"]
    bias = loaded.model.layers[0].mixer.forget_proj.bias
    assert bool(((bias >= 0) & (bias <= torch.tensor(3.0).log() + 1e-6)).all())  # half-lives within chunks of 4
    kept = new_model("global*4").model.layers[0].mixer.o_proj.weight
    assert torch.equal(loaded.model.layers[0].mixer.o_proj.weight, kept)
    assert bool((loaded.model.layers[3].short_conv.weight.abs() > 0).all())
    assert bool((loaded.model.layers[3].short_conv.weight.abs() <= 0.5).all())  # 4^(-1/2)
    assert loaded(TOKENS).logits.isfinite().all()


def test_no_missing_weight_is_left_as_memory_was(new_model, tmp_path, monkeypatch):
    def all_on(kind):
        fields = MIXERS[kind].options_class.model_fields.items()
        switches = {name: True for name, field in fields if field.annotation is bool}
        return {"kind": kind, "short_conv": 3} | switches | {name: 2 for name, field in fields if field.is_required()}

    new_model("global").save_pretrained(tmp_path)
    mixers = {kind: all_on(kind) for kind in MIXERS} | {"global": {"kind": "attention"}}
    config = new_model("global " + " ".join(MIXERS), mixers=mixers, output_norms=True).config
    monkeypatch.setattr(torch, "empty_like", lambda x, **given: torch.full_like(x, torch.nan, **given))
    loaded, info = BraidForCausalLM.from_pretrained(tmp_path, config=config, output_loading_info=True)
    assert any(name.endswith("sink.logit") for name in info["missing_keys"])
    assert not [name for name, weight in loaded.named_parameters() if not weight.isfinite().all()]


def test_device_map_auto(new_model, pattern, tmp_path):
    pytest.importorskip("accelerate")
    model = new_model(pattern)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map="auto")
    torch.testing.assert_close(loaded(TOKENS.to(loaded.device)).logits.cpu(), model(TOKENS).logits, **CLOSE)
    assert loaded.generate(TOKENS, max_new_tokens=3, do_sample=False).shape == (3, 17)


@pytest.mark.parametrize("moved", ["embed_tokens", "layers.1", "norm"])
def test_layers_on_several_devices_are_refused(new_model, moved):
    model = new_model("rat global")
    for name, module in model.model.named_children():
        for hooked in module if name == "layers" else [module]:
            add_hook_to_module(hooked, AlignDevicesHook(execution_device="cpu"))
    model(TOKENS)
    add_hook_to_module(model.model.get_submodule(moved), AlignDevicesHook(execution_device="meta"))
    with pytest.raises(ValueError, match="over cpu, meta; they must run on one device"):
        model(TOKENS)


def test_a_smaller_dtype_on_loading(new_model, pattern, tmp_path):
    model = new_model(pattern)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    logits = loaded(TOKENS).logits
    assert logits.dtype == torch.bfloat16
    assert (logits.double() - model(TOKENS).logits).norm() < 0.05 * model(TOKENS).logits.norm()


def test_a_configuration_that_cannot_be_is_refused():
    with pytest.raises(Exception, match="not divisible by num_attention_heads"):
        BraidConfig(hidden_size=30, num_attention_heads=4)
    with pytest.raises(Exception, match="Did you mean 'global'"):
        BraidConfig(layers="globl*2")
    with pytest.raises(Exception, match="num_hidden_layers is 3, but the pattern"):
        BraidConfig(layers="global*2", num_hidden_layers=3)
