"""Dropping activations changes memory and arithmetic, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lm.errors import UserError
from lm.model.decoder import LanguageModel
from lm.model.documents import Documents
from lm.plan import Plan
from lm.run_file import RunFile
from lm.train.options import ActivationCheckpointing
from lm.train.recompute import planned, recompute_layers

MakeRun = Callable[..., RunFile]
KINDS = [("layers", 1), ("layers", 2), ("selective", 1), ("selective", 3)]


def options(kind: str, every: int) -> ActivationCheckpointing:
    return ActivationCheckpointing.model_validate({"kind": kind, "every": every})


def step(run: RunFile, chosen: ActivationCheckpointing | None) -> tuple[Tensor, list[Tensor], int, int]:
    """Loss, gradients, bytes that the backward was kept, and FLOPs of linear layers."""
    torch.manual_seed(0)
    model = LanguageModel(run.model).train()
    recompute_layers(model, chosen)
    tokens = torch.randint(256, (96,), generator=torch.Generator().manual_seed(1))
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False) as counter, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = model(tokens, Documents.from_lengths([40, 56]), tokens.roll(-1)).loss
    with counter:
        loss.backward()
    linear = sum(count for op, count in counter.get_flop_counts()["Global"].items() if "bmm" not in str(op))
    return loss.detach(), [p.grad for p in model.parameters() if p.grad is not None], sum(kept.values()), linear


@pytest.mark.parametrize(("kind", "every"), KINDS)
def test_loss_and_gradients_are_the_same_bits(make_run: MakeRun, kind: str, every: int) -> None:
    run = make_run()
    loss, gradients, _, _ = step(run, None)
    found, same, _, _ = step(run, options(kind, every))
    assert torch.equal(found, loss)
    for gradient, expected in zip(same, gradients, strict=True):
        assert torch.equal(gradient, expected)


def test_whole_layers_keep_least_and_selective_computes_no_linear_layer_again(make_run: MakeRun) -> None:
    run = make_run()
    _, _, kept, flops = step(run, None)
    _, _, few, more = step(run, options("layers", 1))
    assert step(run, options("selective", 1))[3] == flops
    again = 96 * sum(layer.linear_flops_per_token for layer in run.trainee.plan(32, torch.float32).layers)
    last = 96 * 4 * 2 * 16 * 64  # what the last product of each layer put out is not needed, and PyTorch may see that
    assert more - flops in (again, again - last)
    assert few < kept / 2


def plan(run: RunFile, *chosen: Any) -> Plan:
    return planned(run.trainee.plan(32, torch.float32), options(*chosen) if chosen else None)


def test_the_plan_says_what_is_kept_and_what_is_computed_again(make_run: MakeRun) -> None:
    run = make_run()
    every, second, selective, none = (
        plan(run, "layers", 1),
        plan(run, "layers", 2),
        plan(run, "selective", 1),
        plan(run),
    )
    layers = none.layers
    assert every.recomputed_flops_per_token == sum(layer.flops_per_token for layer in layers)
    assert second.recomputed_flops_per_token == layers[0].flops_per_token + layers[2].flops_per_token
    attention = [layer.flops_per_token - layer.linear_flops_per_token for layer in layers]
    assert selective.recomputed_flops_per_token == sum(attention) > 0
    assert none.recomputed_flops_per_token == 0
    kept = [found.activation_bytes_per_token for found in (every, second, none)]
    assert kept == sorted(kept)
    assert every.activation_bytes_per_token < selective.activation_bytes_per_token < none.activation_bytes_per_token
    assert every.training_flops_per_token == none.training_flops_per_token


def test_a_base_has_no_choice(tmp_path: Any, run_path: Any) -> None:
    import yaml

    from lm.run_file import load_run_file

    values = yaml.safe_load(run_path.read_text())
    del values["model"]
    values["base"] = {"path": "unused"}
    values["train"]["activation_checkpointing"] = {"kind": "layers"}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=r"train.activation_checkpointing: the layers of a base are always recomputed"):
        load_run_file(path)
