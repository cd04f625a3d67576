"""Figures of a model's layers, against what the model itself is asked for."""

from __future__ import annotations

import math
import re
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lm.model.decoder import LanguageModel
from lm.model.documents import Documents
from lm.model.mixers import MIXERS
from lm.model.options import ModelOptions
from lm.train.observe.figures import joined
from lm.train.observe.layers import LayerStatistics

LENGTHS = [24, 1, 15]
KINDS = {
    "attention": {"window": 5},
    "long_short": {"short_heads": 2, "window": 4},
    "rat": {"chunk_size": 4},
    "shifted_short": {"group_size": 8},
}


def model_of(*kinds: str) -> LanguageModel:
    torch.manual_seed(0)
    mixers = {kind: {"kind": kind} | KINDS.get(kind, {}) for kind in kinds}
    options = {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "mixers": mixers,
        "layers": " ".join(kinds),
        "initializer_range": 0.4,
    }
    return LanguageModel(ModelOptions.model_validate(options))


def batch() -> tuple[Tensor, Documents, Tensor]:
    tokens = torch.randint(50, (sum(LENGTHS),), generator=torch.Generator().manual_seed(1))
    targets = tokens.roll(-1)
    targets[::7] = -100
    return tokens, Documents.from_lengths(LENGTHS), targets


def looked_at(model: LanguageModel, scale: float = 1.0, forwards: int = 1) -> dict[str, float]:
    statistics = LayerStatistics(model, model.model.blocks, queries=sum(LENGTHS))
    with statistics.watching():
        for _ in range(forwards):
            (model(*batch()).loss * scale).backward()
    return joined([statistics.figures()])


def test_every_mixer_is_seen_without_knowing_of_it() -> None:
    kinds = sorted(MIXERS)
    found = looked_at(model_of(*(kind for kind in kinds if kind in KINDS)))
    for number, kind in enumerate(kind for kind in kinds if kind in KINDS):
        groups = [name for name in found if re.match(f"layers/entropy/{number:02d}", name)]
        assert len(groups) == (2 if kind in ("long_short", "shifted_short") else 1), kind
        assert all(0 < found[name] < math.log(sum(LENGTHS)) for name in groups)
        assert all(found[name.replace("entropy", "logit_max")] > 0 for name in groups)
        assert (f"layers/half_life/{number:02d}" in found) == (kind == "rat")


def test_logits_and_entropy_are_those_of_attention_written_out() -> None:
    model = model_of("attention")
    found = looked_at(model)
    tokens, documents, _ = batch()
    block = model.model.blocks[0]
    x = block.input_layernorm(model.model.embed_tokens(tokens))
    q, k, _ = block.mixer.project(x, documents)
    distance = torch.arange(len(x))[:, None] - torch.arange(len(x))
    seen = (distance >= 0) & (distance < 5) & (documents.document[:, None] == documents.document)
    scores = torch.einsum("qhd,khd->hqk", q, k) / 8**0.5
    entropy = torch.distributions.Categorical(logits=scores.masked_fill(~seen, -1e9)).entropy().mean()
    assert found["layers/logit_max/00"] == pytest.approx((scores * seen).abs().max().item(), rel=1e-5)
    assert found["layers/entropy/00"] == pytest.approx(entropy.item(), rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1 / 500, 2.0**12])
def test_sizes_of_activations_and_gradients(scale: float) -> None:
    model = model_of("rat", "attention")
    found = looked_at(model, scale)
    outputs: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
        for block in model.model.blocks
    ]
    gradients = torch.autograd.grad(model(*batch()).loss, outputs)
    for handle in handles:
        handle.remove()
    for layer, (output, gradient) in enumerate(zip(outputs, gradients, strict=True)):
        for name, values in (("activation", output), ("gradient", gradient)):
            expected = values.square().mean().sqrt().item()
            assert found[f"layers/{name}_rms/{layer:02d}"] == pytest.approx(expected, rel=1e-4)


def test_half_lives_are_those_of_the_gates() -> None:
    model = model_of("rat")
    gates = model.model.blocks[0].mixer.forget_proj
    with torch.no_grad():
        gates.weight.zero_()
        gates.bias.copy_(torch.linspace(0.5**0.5, 0.5**0.01, 32).logit())  # half-lives of 2 to 100 tokens
    lives = math.log(0.5) / torch.linspace(0.5**0.5, 0.5**0.01, 32).log()
    found = looked_at(model)
    for suffix, share in (("_low", 0.1), ("", 0.5), ("_high", 0.9)):
        assert found[f"layers/half_life{suffix}/00"] == pytest.approx(lives.quantile(share).item(), rel=1e-3)


@pytest.mark.parametrize("forwards", [1, 3])
def test_loss_by_position_is_over_all_forwards(forwards: int) -> None:
    model = model_of("attention")
    found = looked_at(model, forwards=forwards)
    tokens, documents, targets = batch()
    nll = model(tokens, documents, targets).token_nll
    for low in (0, 1, 2, 4, 8, 16):
        place = documents.position
        chosen = (place >= low) & (place < max(1, 2 * low)) & (targets != -100)
        assert found[f"position_loss/{low}"] == pytest.approx(nll[chosen].mean().item(), rel=1e-4)
    assert "position_loss/32" not in found


def test_a_loss_that_is_no_cross_entropy_has_no_positions_in_nats() -> None:
    model = model_of("attention")
    forward = model.forward
    model.forward = lambda *inputs: SimpleNamespace(**forward(*inputs)._asdict())
    found = looked_at(model)
    assert "layers/gradient_rms/00" in found
    assert not any(name.startswith("position_loss/") for name in found)


def test_nothing_stays_behind_and_gradients_are_what_they_were() -> None:
    model = model_of("rat", "long_short")
    model(*batch()).loss.backward()
    plain = [p.grad.clone() for p in model.parameters()]
    state = torch.get_rng_state()
    model.zero_grad()
    looked_at(model)
    assert all(torch.equal(p.grad, before) for p, before in zip(model.parameters(), plain, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    from kernels.gated_scan import scan_calls
    from kernels.interval_attention import attention_calls

    assert not attention_calls._watchers
    assert not scan_calls._watchers


def test_layers_that_backward_computes_again_are_seen_once() -> None:
    model = model_of("rat", "attention")
    expected = looked_at(model)
    for block in model.model.blocks:
        forward = block.forward
        block.forward = lambda *inputs, forward=forward: torch.utils.checkpoint.checkpoint(
            forward, *inputs, use_reentrant=False
        )
    assert looked_at(model, forwards=2)["layers/gradient_rms/00"] == pytest.approx(expected["layers/gradient_rms/00"])
