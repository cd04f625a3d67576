"""The training state of a DeepSpeed engine as named pieces that know nothing of its ZeRO stage.

Whatever the stage, every trainable parameter has an fp32 master weight and AdamW's two moments; a rank holds the
elements [offset, offset + n) of each, flattened. `fragments` gives those pieces as views, so reading them saves the
state and writing them restores it, on any number of ranks and any stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

KINDS = ("weight", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Fragment:
    """The elements of one parameter that this rank holds.

    parts: for each of KINDS a 1-D fp32 view of the elements from `offset` on.
    own: the slice of them that this rank saves; ranks that hold the same elements share them out.
    """

    name: str
    offset: int
    parts: dict[str, Tensor]
    own: slice

    @property
    def numel(self) -> int:
        return self.parts["weight"].numel()


def initialise_moments(engine: Any) -> None:
    """Gives every master weight its moments, at zero, and the step count 0, as AdamW itself does at its first step."""
    state = engine.basic_optimizer.state
    for master in _masters(engine):
        state[master] = {
            "step": torch.zeros((), dtype=torch.float32, device=master.device),
            "exp_avg": torch.zeros_like(master),
            "exp_avg_sq": torch.zeros_like(master),
        }
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def adam_step(engine: Any) -> int:
    """How many updates AdamW has made: the same for all parameters."""
    state = engine.basic_optimizer.state
    (steps,) = {int(state[master]["step"]) for master in _masters(engine)}
    return steps


def set_adam_step(engine: Any, step: int) -> None:
    """Sets the count that AdamW's bias correction uses."""
    for master in _masters(engine):
        engine.basic_optimizer.state[master]["step"].fill_(step)


def fragments(engine: Any, model: nn.Module, rank: int, size: int) -> Iterator[Fragment]:
    """This rank's pieces of the trainable parameters of `model`, which `engine` trains."""
    stage = engine.zero_optimization_stage()
    for name, parameter in _trainable(model):
        if stage == 0:
            yield _whole(name, parameter, engine.basic_optimizer.state, rank, size)
        elif stage == 3:
            yield _partition(name, parameter, rank)
        elif parameter._hp_mapping is not None:
            yield _mapped(name, parameter._hp_mapping)


def publish(engine: Any, model: nn.Module) -> None:
    """Makes the weights that the forward pass uses follow masters that were written. Collective."""
    stage = engine.zero_optimization_stage()
    with torch.no_grad():
        if stage == 3:
            engine.optimizer.checkpoint_event_prologue()
            for _, parameter in _trainable(model):
                parameter.ds_tensor.copy_(_local(parameter, "weight"))
            engine.optimizer.checkpoint_event_epilogue()
        elif stage > 0:
            engine.optimizer.update_lp_params()


def _trainable(model: nn.Module) -> list[tuple[str, Any]]:
    # Any, since DeepSpeed hangs its own attributes on parameters.
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _masters(engine: Any) -> list[Tensor]:
    """The fp32 tensors that AdamW updates on this rank: the parameters at stage 0, flat buffers above."""
    if engine.zero_optimization_stage() == 3:
        return list(engine.optimizer.fp32_partitioned_groups_flat)
    return [tensor for group in engine.basic_optimizer.param_groups for tensor in group["params"]]


def _whole(name: str, master: Tensor, state: Any, rank: int, size: int) -> Fragment:
    tensors = {"weight": master.detach(), **{kind: state[master][kind] for kind in KINDS[1:]}}
    parts = {kind: tensor.view(-1) for kind, tensor in tensors.items()}
    numel = master.numel()
    return Fragment(name, 0, parts, slice(numel * rank // size, numel * (rank + 1) // size))


def _mapped(name: str, mapping: Any) -> Fragment:
    parts = {kind: mapping.get_hp_fragment(None if kind == "weight" else kind).detach() for kind in KINDS}
    return Fragment(name, mapping.lp_fragment_address.start, parts, slice(None))


def _partition(name: str, parameter: Any, rank: int) -> Fragment:
    partition = parameter.partition_numel()
    offset = min(rank * partition, parameter.ds_numel)
    numel = min(partition, parameter.ds_numel - offset)  # the last ranks' partitions are padded
    parts = {kind: _local(parameter, kind).detach()[:numel] for kind in KINDS}
    return Fragment(name, offset, parts, slice(None))


def _local(parameter: Any, kind: str) -> Tensor:
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    local: Tensor = (
        safe_get_local_fp32_param(parameter) if kind == "weight" else safe_get_local_optimizer_state(parameter, kind)
    )
    return local
