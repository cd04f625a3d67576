"""The plan's figures against independent counts: the built model, torch's FLOP counter, dense masks."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lm.model.decoder import LanguageModel
from lm.model.documents import Documents
from lm.model.options import ModelOptions
from lm.plan import Shared, make_plan, rank_memory

LENGTH = 50
MIXERS: dict[str, Any] = {
    "rat": {"kind": "rat", "chunk_size": 7},
    "local": {"kind": "attention", "window": 6, "qk_norm": True},
    "ls": {"kind": "long_short", "short_heads": 2, "window": 4, "sink": True},
    "s2": {"kind": "shifted_short", "group_size": 12},
    "global": {"kind": "attention"},
    "conv": {"kind": "attention", "window": 6, "short_conv": 4},
}


def options(layers: str = "rat local ls s2 global conv", **changes: Any) -> ModelOptions:
    fields: dict[str, Any] = {"vocab_size": 97, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    return ModelOptions(**{**fields, "mixers": MIXERS, "layers": layers, **changes})


def dense_masks(kind: str) -> Tensor:
    """[heads, queries, keys] bool over tokens, straight from each mechanism's definition."""
    query, key = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None]
    causal = key <= query
    if kind in ("local", "conv"):
        return (causal & (key > query - 6)).expand(4, -1, -1)
    if kind == "ls":
        short = causal & (key > query - 4)
        return torch.stack([short, short, causal, causal])
    if kind == "s2":
        halves = [causal & ((key + shift) // 12 == (query + shift) // 12) for shift in (0, 6)]
        return torch.stack([halves[0], halves[0], halves[1], halves[1]])
    return causal.expand(4, -1, -1)


def convolved(kind: str) -> Tensor:
    """[outputs, inputs] bool of what stands before the attention."""
    query, key = torch.arange(LENGTH)[:, None], torch.arange(LENGTH)[None]
    return (key <= query) & (key > query - (4 if kind == "conv" else 1))


def scored_pairs(kind: str) -> int:
    if kind == "rat":  # finished chunks and the running state, once per head
        return 4 * sum(token // 7 + 1 for token in range(LENGTH))
    return int(dense_masks(kind).sum())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mlp", ["swiglu", "gelu"])
def test_parameters_are_those_of_the_built_model(tied: bool, mlp: str) -> None:
    model_options = options(mlp=mlp, tie_word_embeddings=tied)
    plan = make_plan(model_options, LENGTH)
    model = LanguageModel(model_options)
    assert plan.parameters == sum(parameter.numel() for parameter in model.parameters())
    for layer, built in zip(plan.layers, model.model.layers, strict=True):
        assert layer.parameters == sum(parameter.numel() for parameter in built.parameters())
    final_norm = 32
    assert plan.parameters == sum(layer.parameters for layer in plan.layers) + plan.embedding_parameters + final_norm


def test_flops_are_those_of_torchs_counter_and_of_the_dense_masks() -> None:
    model_options = options("rat local ls s2 global rat conv")
    plan = make_plan(model_options, LENGTH)
    model = LanguageModel(model_options)
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(LENGTH, dtype=torch.int64), Documents.from_lengths([LENGTH]))
    counts = {name: sum(by_operator.values()) for name, by_operator in counter.get_flop_counts().items()}
    projections = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for index, layer in enumerate(plan.layers):
        inside = [name for name in projections if name.startswith(f"model.layers.{index}.")]
        linear = sum(counts[f"LanguageModel.{name}"] for name in inside)
        attention = 4 * model_options.dimensions.head_dim * scored_pairs(layer.mixer)
        convolution = 2 * 4 * 32 * LENGTH * (layer.mixer == "conv")  # a product and a sum per weight
        assert layer.flops_per_token * LENGTH == pytest.approx(linear + attention + convolution, rel=1e-12)
    head = counts["LanguageModel.lm_head"]
    layers = sum(layer.flops_per_token for layer in plan.layers)
    assert plan.flops_per_token == pytest.approx(layers + head / LENGTH, rel=1e-12)
    assert plan.training_flops_per_token == 3 * plan.flops_per_token


@pytest.mark.parametrize(
    "layers", ["local*3", "s2*2", "local s2 local", "ls", "rat", "local global", "conv*3", "conv local"]
)
def test_reach_is_that_of_the_composed_masks(layers: str) -> None:
    knows = torch.eye(LENGTH, dtype=torch.bool)
    for layer in make_plan(options(layers), LENGTH).layers:
        for sees in (convolved(layer.mixer), dense_masks(layer.mixer).any(dim=0)):
            knows = (sees.float() @ knows.float()) > 0
        farthest = max(query - int(knows[query].nonzero().min()) + 1 for query in range(LENGTH))
        assert layer.reach == farthest


def test_caches_are_counted_at_the_length_and_for_what_a_token_adds() -> None:
    layers = {layer.mixer: layer for layer in make_plan(options(), LENGTH, torch.bfloat16).layers}
    token = 2 * 2 * 8 * 2  # keys and values, 2 key/value heads, head width 8, bf16
    assert (layers["global"].cache_bytes, layers["global"].cache_bytes_per_token) == (LENGTH * token, token)
    assert (layers["local"].cache_bytes, layers["local"].cache_bytes_per_token) == (6 * token, 0)
    assert (layers["conv"].cache_bytes, layers["conv"].cache_bytes_per_token) == (6 * token + 3 * 32 * 2, 0)
    assert layers["ls"].cache_bytes == (LENGTH + 4) * token // 2
    assert layers["ls"].cache_bytes_per_token == token / 2
    chunk, running = 2 * 32 * 2, 2 * 32 * 4  # RAT keeps all 4 heads; its running state is fp32
    assert layers["rat"].cache_bytes == 8 * chunk + running
    assert layers["rat"].cache_bytes_per_token == pytest.approx((15 - 8) * chunk / LENGTH)


@pytest.mark.parametrize(
    ("stage", "world", "dtype", "bytes_per_parameter"),
    [
        (0, 4, torch.float32, (4, 4, 8)),
        (1, 4, torch.float32, (4, 4, 3)),
        (0, 4, torch.bfloat16, (2, 2, 12)),
        (1, 4, torch.bfloat16, (2, 2, 3)),
        (2, 4, torch.bfloat16, (2, 0.5, 3)),
        (3, 4, torch.bfloat16, (0.5, 0.5, 3)),
        (3, 1, torch.bfloat16, (2, 2, 12)),
    ],
)
def test_state_memory_follows_the_zero_stage(
    stage: int, world: int, dtype: torch.dtype, bytes_per_parameter: tuple[float, ...]
) -> None:
    plan = make_plan(options(), LENGTH, dtype)
    memory = rank_memory(plan, zero_stage=stage, world_size=world, micro_batch_size=1, dtype=dtype)
    found = (memory.parameters, memory.gradients, memory.optimizer)
    assert found == pytest.approx([plan.parameters * size for size in bytes_per_parameter], abs=1)
    averaged = rank_memory(plan, zero_stage=stage, world_size=world, micro_batch_size=1, dtype=dtype, average=True)
    own = plan.parameters * 4 / (world if stage else 1)
    assert averaged.optimizer - memory.optimizer == pytest.approx(own, abs=1)


@pytest.mark.parametrize("layers", ["rat*2", "local*2", "s2 ls", "global*2", "conv*2"])
@pytest.mark.parametrize("mlp", ["geglu", "gelu"])
def test_activations_are_roughly_what_the_backward_keeps(layers: str, mlp: str) -> None:
    length, rows = 256, 2
    model_options = options(layers, hidden_size=128, vocab_size=64, mlp=mlp)
    plan = make_plan(model_options, length)
    memory = rank_memory(plan, zero_stage=0, world_size=1, micro_batch_size=rows, dtype=torch.float32)
    model = LanguageModel(model_options)
    kept: dict[int, int] = {parameter.untyped_storage().data_ptr(): 0 for parameter in model.parameters()}
    tensors = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        tensors.append(tensor)  # alive, so that no storage address is used twice
        return tensor

    tokens = torch.zeros(rows * length, dtype=torch.int64)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(tokens, Documents.from_lengths([length] * rows), tokens).loss.backward()
    assert memory.activations == pytest.approx(sum(kept.values()), rel=0.25)


def test_the_loss_holds_a_chunk_of_logits_and_the_gradient_of_a_head_that_is_trained() -> None:
    few, many = (make_plan(options(vocab_size=size), LENGTH, torch.bfloat16) for size in (1000, 2000))
    found = [
        rank_memory(plan, zero_stage=3, world_size=4, micro_batch_size=2, dtype=torch.bfloat16).activations
        for plan in (few, many, replace(many, head_gradient_parameters=0))
    ]
    assert found[1] - found[0] == 4 * 1000 * (2 * LENGTH + 32)
    assert found[1] - found[2] == 4 * 2000 * 32


def test_a_large_plan_is_quick() -> None:
    large = options(
        "(rat local)*24", hidden_size=8192, num_attention_heads=64, num_key_value_heads=64, vocab_size=2**17
    )
    start = time.process_time()
    plan = make_plan(large, 4096)
    assert time.process_time() - start < 2
    assert plan.parameters > 30e9


def test_ranks_that_hold_a_row_together_are_told_what_each_layer_exchanges() -> None:
    """Forward on two ranks of 128 tokens each, counted by hand; one key or value of two heads takes 64 bytes."""
    plan = make_plan(options(), 256, shared=Shared(2))
    found = {layer.mixer: (layer.exchange, layer.exchange_bytes) for layer in plan.layers}
    traded = ("heads", 128 * (4 + 2 * 2 + 4) * 8 // 2 * 4)  # queries, keys, values and outputs of half the heads
    finals = 128 // 7  # and the state of the chunk that the border cuts: a product, a key and a value
    assert found == {
        "rat": ("neighbours", (2 * finals + 3) * 32 * 4),
        "local": ("neighbours", 5 * 2 * 64),
        "ls": traded,
        "s2": ("neighbours", 2 * 32 * (128 % 12 + (128 + 6) % 12)),
        "global": traded,
        "conv": ("neighbours", 5 * 2 * 64 + 3 * 32 * 4),
    }
    alone = make_plan(options(), 256)
    assert {(layer.exchange, layer.exchange_bytes) for layer in alone.layers} == {("", 0)}
    memories = [
        rank_memory(each, zero_stage=0, world_size=2, micro_batch_size=1, dtype=torch.float32) for each in (alone, plan)
    ]
    whole, half = (memory.activations - 4 * plan.head_gradient_parameters for memory in memories)
    assert 2 * half == whole
