"""Stage one on its own: what the distance is, what moves, and that layers do not meet."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lm.graft.operation import Operation
from lm.graft.regression import Regression, RegressionModel
from lm.model.documents import Documents

from .conftest import VOCAB, save_llama

LENGTHS = [40, 24]
LOCAL = {"local": {"kind": "attention", "window": 4}}


def built(operation: Operation) -> RegressionModel:
    model = Regression(operation, seed=0).build().model
    assert isinstance(model, RegressionModel)
    return model


def batch(seed: int = 0) -> tuple[Tensor, Documents, Tensor]:
    tokens = torch.randint(0, VOCAB, (sum(LENGTHS),), generator=torch.Generator().manual_seed(seed))
    targets = tokens.roll(-1)
    targets[torch.tensor(LENGTHS).cumsum(0) - 1] = -100
    return tokens, Documents.from_lengths(LENGTHS), targets


@pytest.mark.parametrize("loss", ["l1", "l2", "huber"])
def test_the_distance_is_of_the_mixers_on_the_originals_states(make_operation, loss: str) -> None:
    operation = make_operation("global local rat local", LOCAL, loss=loss)
    model = built(operation)
    tokens, documents, targets = batch()
    found = model(tokens, documents, targets)
    weights = operation.weights()
    original, grafted = operation.original(weights), operation.grafted(weights, seed=0)
    expected = []
    with torch.no_grad():
        x = original.model.embed_tokens(tokens)
        for layer, (old, new) in enumerate(zip(original.model.blocks, grafted.model.blocks, strict=True)):
            inputs = old.input_layernorm(x)
            wanted, given = old.mixer(inputs, documents), new.mixer(inputs, documents)
            if layer in operation.layers:
                parts = []
                for e in (given - wanted, wanted):
                    unit = wanted.square().mean(1, keepdim=True).sqrt()
                    huber = torch.nn.functional.huber_loss(e / unit, torch.zeros_like(e), reduction="none") * unit**2
                    parts.append({"l1": e.abs(), "l2": e**2, "huber": huber}[loss][targets != -100].sum())
                expected.append(torch.stack(parts))
            x = old(x, documents)
    sums = torch.stack(expected, dim=1)
    torch.testing.assert_close(found.loss, sums[0].sum())
    torch.testing.assert_close(model.take_sums(), sums.double(), atol=1e-3, rtol=1e-5)
    assert model.take_sums().sum() == 0
    torch.testing.assert_close(found.token_nll.sum(), found.loss)
    assert bool((found.token_nll[targets == -100] == 0).all())


def test_a_window_that_holds_every_document_is_the_original(make_operation) -> None:
    wide = {"wide": {"kind": "attention", "window": max(LENGTHS)}}
    model = built(make_operation("global wide global wide", wide)).train()
    found = model(*batch())
    assert found.loss == 0
    found.loss.backward()
    assert all(bool((p.grad == 0).all()) for p in model.branches.parameters())


def test_only_the_new_mixers_get_gradients(make_operation) -> None:
    operation = make_operation("rat global local global", LOCAL)
    model = built(operation).train()
    model(*batch()).loss.backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("branches.")}
    assert all(bool((p.grad != 0).any()) for p in model.branches.parameters())
    assert len(model.blocks) == 3  # nothing is run behind the last grafted layer


def test_what_a_layer_learns_does_not_depend_on_the_others(make_operation) -> None:
    gradients = []
    for layers in ("global local global local", "global local local rat"):
        model = built(make_operation(layers, LOCAL)).train()
        model(*batch()).loss.backward()
        gradients.append([p.grad for p in model.branches["1"].parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_rat_over_single_tokens_can_be_attention(make_operation, tmp_path) -> None:
    """Chunks of one token, a query and a key per head, and open gates: the same function, so the distance is 0."""
    save_llama(tmp_path, num_key_value_heads=4)
    rat = {"rat": {"kind": "rat", "chunk_size": 1, "qk_groups": 4, "positions": "token"}}
    model = built(make_operation("global rat global global", rat, base=tmp_path))
    mixer, original = model.branches["1"].mixer, model.blocks[1].mixer
    with torch.no_grad():
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(mixer, name).weight.copy_(getattr(original, name).weight)
        mixer.forget_proj.weight.zero_()
        mixer.forget_proj.bias.fill_(-40)
        mixer.output_gate_proj.weight.zero_()  # a gate of one half
        mixer.o_proj.weight.copy_(2 * original.o_proj.weight)
    model(*batch())
    distance, of_nothing = model.take_sums()
    assert distance < 1e-6 * of_nothing


def test_sinks_are_learned_at_a_rate_of_their_own(make_operation) -> None:
    local = {"local": {"kind": "attention", "window": 4, "sink": True}}
    operation = make_operation("global local global local", local, optimizer={"lr": 1e-3, "sink_lr": 0.25})
    built = Regression(operation, seed=0).build()
    sinks = {f"branches.{layer}.mixer.sink.logit" for layer in (1, 3)}
    assert built.lr_factors == dict.fromkeys(sinks, 250)
    assert sinks < {name for name, _ in built.model.named_parameters()}


@pytest.mark.parametrize(
    ("mixer", "share"),
    [
        ({"kind": "attention", "window": 8}, 0.95),
        ({"kind": "rat", "chunk_size": 4, "qk_groups": 2}, 0.7),
        ({"kind": "long_short", "short_heads": 2, "window": 4}, 0.7),
    ],
    ids=lambda value: value.get("kind") if isinstance(value, dict) else "",
)
def test_every_mixer_comes_nearer(make_operation, mixer: dict, share: float) -> None:
    model = built(make_operation("global new global new", {"new": mixer}, loss="l2")).train()
    optimizer = torch.optim.AdamW(model.branches.parameters(), lr=5e-3, weight_decay=0.0)
    before = model(*batch()).loss.item()
    for step in range(1, 41):
        optimizer.zero_grad()
        model(*batch(step)).loss.backward()
        optimizer.step()
    after = model(*batch()).loss.item()
    assert after < share * before
