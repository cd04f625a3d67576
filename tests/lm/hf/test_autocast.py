"""Float32 weights under autocast, as transformers' Trainer evaluates with bf16=True: caches hold what layers make."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lm.hf import BraidForCausalLM
from lm.model.mixers import MIXERS

LAYERS = {
    "global": {"kind": "attention"},
    "local": {"kind": "attention", "window": 4},
    "dilated": {"kind": "attention", "window": 4, "dilation": 2},
    "normed": {"kind": "attention", "qk_norm": True, "sink": True},
    "conv": {"kind": "attention", "positions": "none", "short_conv": 4},
    "rat": {"kind": "rat", "chunk_size": 4},
    "conv_rat": {"kind": "rat", "chunk_size": 4, "short_conv": 3},
    "s2": {"kind": "shifted_short", "group_size": 6},
    "ls": {"kind": "long_short", "short_heads": 2, "window": 3},
    "convolution": {"kind": "convolution"},
}


@pytest.fixture(params=list(LAYERS))
def model(request: pytest.FixtureRequest, new_model: Callable[..., BraidForCausalLM]) -> BraidForCausalLM:
    return new_model(f"{request.param}*2", mixers=LAYERS).float()


def under(autocast: bool) -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16, enabled=autocast)


def tokens() -> Tensor:
    return torch.randint(0, 23, (2, 19), generator=torch.Generator().manual_seed(1))


def read(model: BraidForCausalLM, pieces: list[tuple[int, bool]]) -> Tensor:
    """Logits of all tokens, read by so many at a time, each with autocast or without."""
    past, logits, first = None, [], 0
    for count, autocast in pieces:
        with torch.no_grad(), under(autocast):
            out = model(input_ids=tokens()[:, first : first + count], past_key_values=past, use_cache=True)
        past, first = out.past_key_values, first + count
        logits.append(out.logits.float())
    return torch.cat(logits, dim=1)


def test_every_kind_is_here() -> None:
    assert {mixer["kind"] for mixer in LAYERS.values()} == set(MIXERS)


def test_an_evaluation_is_a_forward_without_a_cache(model: BraidForCausalLM) -> None:
    with torch.no_grad(), under(True):
        cached, plain = (model(input_ids=tokens(), labels=tokens(), use_cache=use) for use in (True, False))
    torch.testing.assert_close((cached.loss, cached.logits), (plain.loss, plain.logits), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "pieces",
    [
        [(11, True), *[(1, True)] * 8],
        [(7, True), (5, True), (7, True)],
        [(7, True), (5, False), *[(1, False)] * 7],
        [(7, False), (5, True), *[(1, True)] * 7],
    ],
    ids=["steps", "chunks", "ends", "begins"],
)
def test_decoding_is_the_parallel_forward(model: BraidForCausalLM, pieces: list[tuple[int, bool]]) -> None:
    """As far as bfloat16 goes: by no more than three times what the parallel forward itself is off in it."""
    exact, rounded = (read(model, [(19, autocast)]) for autocast in (False, True))
    off = (rounded - exact).abs().max()
    assert 0 < off < 0.1 * exact.abs().max()
    assert (read(model, pieces) - exact).abs().max() < 3 * off


def test_norms_of_queries_and_keys_may_be_in_float32(new_model: Callable[..., BraidForCausalLM]) -> None:
    model = new_model("normed*2", mixers=LAYERS).float()
    before = read(model, [(18, True), (1, True)])
    for layer in model.model.blocks:
        for norm in (layer.mixer.q_norm, layer.mixer.k_norm):
            norm.register_forward_hook(lambda _, inputs, out: out.float())
    assert read(model, [(18, True), (1, True)]).equal(before)


def test_texts_are_generated_from_a_cache_in_the_type_of_autocast(model: BraidForCausalLM) -> None:
    with under(True):
        out = model.generate(tokens(), max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
    assert out.sequences.shape == (2, 23)
    for layer in out.past_key_values.decoder.layers:
        assert all(buffer.keys.dtype == buffer.values.dtype == torch.bfloat16 for buffer in layer.buffers)
