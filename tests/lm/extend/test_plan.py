"""An extension's plan against the model that is trained."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lm.plan import rank_memory
from lm.plan_table import plan_run, print_plan
from lm.run_file import load_run_file
from lm.train.format import short_number

LENGTH, GROUP = 256, 64


@pytest.mark.parametrize("lora", [{"preset": "longlora"}, {"dora": True, "targets": "all-linear"}, None])
def test_parameters_are_those_of_the_model(make_extension, lora: dict[str, object] | None) -> None:
    extension = make_extension(lora)
    plan = extension.plan(LENGTH, torch.float32)
    sizes = {p: p.numel() for p in extension.build().model.parameters()}
    assert plan.parameters == sum(sizes.values())
    assert plan.parameters - plan.frozen_parameters == sum(n for p, n in sizes.items() if p.requires_grad)
    memory = rank_memory(plan, zero_stage=0, world_size=1, micro_batch_size=1, dtype=torch.float32)
    assert memory.optimizer == 8 * (plan.parameters - plan.frozen_parameters)


@pytest.mark.parametrize("base_folder", ["untied"], indirect=True)
def test_flops_are_products_and_pairs(make_extension) -> None:
    full = make_extension(None, attention="full").plan(LENGTH, torch.float32)
    shifted = make_extension(None, group_size=GROUP).plan(LENGTH, torch.float32)
    width, layers, heads, head_dim = 32, 2, 4, 8
    products = 2 * (layers * (width * (2 * width + 2 * 16) + 3 * width * 48) + 270 * width)
    assert full.flops_per_token == products + layers * 4 * head_dim * heads * (LENGTH + 1) / 2
    pairs = LENGTH * (GROUP + 1) // 2, (LENGTH - GROUP) * (GROUP + 1) // 2 + GROUP // 2 * (GROUP // 2 + 1)
    assert shifted.flops_per_token == products + layers * 4 * head_dim * heads * sum(pairs) / 2 / LENGTH
    assert full.training_flops_per_token == 3 * full.flops_per_token
    assert [layer.reach for layer in shifted.layers] == [GROUP, GROUP * 3 // 2]
    assert full.cache_bytes == shifted.cache_bytes == layers * LENGTH * 2 * 2 * head_dim * 4
    # Adapters and a trained embedding leave the untied head and all layers without gradients of their weights.
    frozen = make_extension({"preset": "longlora"}, attention="full").plan(LENGTH, torch.float32)
    assert frozen.training_flops_per_token == 3 * full.flops_per_token - products


@pytest.mark.parametrize("base_folder", ["tied", "braid"], indirect=True)
def test_all_layers_are_recomputed(run_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = load_run_file(run_path)
    plan, memory = plan_run(run, 1)
    assert plan.recomputed_flops_per_token == sum(layer.flops_per_token for layer in plan.layers)
    print_plan(run, plan, memory, 1)
    again = short_number(plan.recomputed_flops_per_token)
    assert re.search(rf"recomputed beside them +│ at most {again} ", capsys.readouterr().out)


@pytest.mark.parametrize("base_folder", ["tied", "untied"], indirect=True)
def test_a_frozen_head_has_no_gradient_and_frozen_layers_may_be_in_4_bits(make_extension, base_folder: Path) -> None:
    full, lora = (make_extension(options) for options in (None, {"preset": "longlora"}))
    model = lora.build().model.model
    head = model.get_output_embeddings().weight
    plans = [extension.plan(LENGTH, torch.bfloat16) for extension in (full, lora)]
    assert [plan.head_gradient_parameters for plan in plans] == [270 * 32, 270 * 32 * head.requires_grad]

    in_4_bits = replace(lora, base=lora.base.model_copy(update={"quantization": "nf4"})).plan(LENGTH, torch.bfloat16)
    weights = [
        rank_memory(plan, zero_stage=0, world_size=1, micro_batch_size=1, dtype=torch.bfloat16).parameters
        for plan in (plans[1], in_4_bits)
    ]
    linears = 2 * (32 * (2 * 32 + 2 * 16) + 3 * 32 * 48)
    assert weights[0] - weights[1] == pytest.approx(linears * (2 - 4.127 / 8), abs=1)
