"""The training state of a DeepSpeed engine as named pieces that know nothing of its ZeRO stage.

Whatever the stage, every trainable parameter has an fp32 master weight and AdamW's two moments; a rank holds the
elements [offset, offset + n) of each, flattened. `buffers` gives those pieces as views, so reading them saves the
state and writing them restores it, on any number of ranks and any stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lm.train.distributed import World
from lm.train.muon import GROUP, Exchange, MuonAdamW, Piece

KINDS = ("weight", "exp_avg", "exp_avg_sq")
"""What a parameter has: its master weight and AdamW's moments; under Muon a momentum in place of these."""


@dataclass(frozen=True)
class Fragment:
    """The elements of one parameter that this rank holds.

    parts: for each of its KINDS a 1-D fp32 view of the elements from `offset` on.
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
    for index, (master, group) in enumerate(_masters(engine)):
        moments = KINDS[1:2] if group["name"] == GROUP else KINDS[1:]
        with _in_memory(engine, index):
            state[master] = {"step": torch.zeros((), dtype=torch.float32, device=master.device)}
            state[master] |= {kind: torch.zeros_like(master) for kind in moments}
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer._lazy_init_hp_params_optimizer_state()


def adam_step(engine: Any) -> int:
    """How many updates AdamW has made: the same for all parameters."""
    state = engine.basic_optimizer.state
    (steps,) = {int(state[master]["step"]) for master, _ in _masters(engine)}
    return steps


def set_adam_step(engine: Any, step: int) -> None:
    """Sets the count that AdamW's bias correction uses."""
    for master, _ in _masters(engine):
        engine.basic_optimizer.state[master]["step"].fill_(step)


def fragments(engine: Any, model: nn.Module, rank: int, size: int) -> Iterator[Fragment]:
    """This rank's pieces of the trainable parameters of `model`, which `engine` trains; see `buffers`."""
    return chain.from_iterable(buffers(engine, model, rank, size))


def buffers(engine: Any, model: nn.Module, rank: int, size: int) -> Iterator[list[Fragment]]:
    """The same in lists of those that are in memory together: all of them, or where state lies in files, one buffer's.

    A buffer is read when its list is asked for, and written back when the next one is; views are good until then.
    """
    stage = engine.zero_optimization_stage()
    if stage == 3 and engine.optimizer.swap_optimizer:
        for index in range(len(engine.optimizer.fp16_groups)):
            with _in_memory(engine, index):
                yield list(_partitions(engine, model, rank, index))
    elif stage == 3:
        groups = range(len(engine.optimizer.fp16_groups))
        yield [piece for index in groups for piece in _partitions(engine, model, rank, index)]
    elif stage == 0:
        state = engine.basic_optimizer.state
        yield [_whole(name, parameter, state, rank, size) for name, parameter in _trainable(model)]
    else:
        mapped = [(name, parameter._hp_mapping) for name, parameter in _trainable(model)]
        yield [_mapped(name, mapping) for name, mapping in mapped if mapping is not None]


def publish(engine: Any) -> None:
    """Makes the weights that the forward pass uses follow masters that were written. Collective."""
    stage, zero = engine.zero_optimization_stage(), engine.optimizer
    with torch.no_grad():
        if stage == 3:
            zero.checkpoint_event_prologue()
            for index in range(len(zero.fp16_groups)):
                with _in_memory(engine, index):
                    zero._reassign_or_swap_out_partitioned_parameters(index)
            zero.checkpoint_event_epilogue()
        elif stage > 0:
            zero.update_lp_params()


@contextmanager
def _in_memory(engine: Any, index: int) -> Iterator[None]:
    """Reads the masters and moments of the stage-3 buffer of that index, if they lie in files, and writes them back."""
    zero = engine.optimizer
    if engine.zero_optimization_stage() != 3 or not zero._swappable_optimizer_subgroup(index):
        yield
        return
    zero._optimizer_states_and_gradient_swap_in(index)
    try:
        yield
    finally:
        zero._optimizer_states_and_gradient_swap_out(index)


def _trainable(model: nn.Module) -> list[tuple[str, Any]]:
    # Any, since DeepSpeed hangs its own attributes on parameters.
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _masters(engine: Any) -> list[tuple[Tensor, dict[str, Any]]]:
    """The fp32 tensors that the optimizer updates on this rank, each with its group.

    They are the parameters at stage 0, flat buffers above.
    """
    groups = engine.basic_optimizer.param_groups
    if engine.zero_optimization_stage() == 3:
        zero = engine.optimizer
        flats = enumerate(zero.fp32_partitioned_groups_flat)
        return [(flat, groups[zero.sub_group_to_group_id[index]]) for index, flat in flats]
    return [(tensor, group) for group in groups for tensor in group["params"]]


def place_matrices(engine: Any, model: nn.Module, world: World) -> None:
    """Tells Muon which pieces of which matrices its buffers hold. Collective."""
    optimizer = engine.basic_optimizer
    if not isinstance(optimizer, MuonAdamW):
        return
    shapes = {name: torch.Size(getattr(p, "ds_shape", p.shape)) for name, p in _trainable(model)}
    held = [(fragment, fragment.parts["weight"]) for fragment in fragments(engine, model, world.rank, world.size)]
    exchanges = {}
    for master, group in _masters(engine):
        if group["name"] == GROUP:
            first, last = master.data_ptr(), master.data_ptr() + master.numel() * master.element_size()
            pieces = [
                Piece(fragment.name, fragment.offset, part.numel(), (part.data_ptr() - first) // part.element_size())
                for fragment, part in held
                if part.numel() and first <= part.data_ptr() < last
            ]
            exchanges[master] = Exchange(world.gather(pieces), shapes, world)
    optimizer.place(exchanges)


def _whole(name: str, master: Tensor, state: Any, rank: int, size: int) -> Fragment:
    moments = [kind for kind in KINDS if kind in state[master]]
    tensors = {"weight": master.detach(), **{kind: state[master][kind] for kind in moments}}
    parts = {kind: tensor.view(-1) for kind, tensor in tensors.items()}
    numel = master.numel()
    return Fragment(name, 0, parts, slice(numel * rank // size, numel * (rank + 1) // size))


def _mapped(name: str, mapping: Any) -> Fragment:
    moments = [kind for kind in KINDS if kind in mapping.get_optim_state_keys()]
    parts = {"weight": mapping.get_hp_fragment(), **{kind: mapping.get_hp_fragment(kind) for kind in moments}}
    parts = {kind: part.detach() for kind, part in parts.items()}
    return Fragment(name, mapping.lp_fragment_address.start, parts, slice(None))


def _partitions(engine: Any, model: nn.Module, rank: int, index: int) -> Iterator[Fragment]:
    """Stage 3: the pieces in one flat buffer, wherever it lies."""
    zero = engine.optimizer
    names = {id(parameter): name for name, parameter in _trainable(model)}
    flat = zero.fp32_partitioned_groups_flat[index]
    state = zero.optimizer.state[flat]
    tensors = {"weight": flat.detach()} | {kind: state[kind] for kind in KINDS[1:] if kind in state}
    for parameter in zero.fp16_groups[index]:
        partition = parameter.partition_numel()
        offset = min(rank * partition, parameter.ds_numel)
        numel = min(partition, parameter.ds_numel - offset)  # the last ranks' partitions are padded
        _, start, _ = zero.grad_position[zero.get_param_id(parameter)]
        parts = {kind: tensor[start : start + numel] for kind, tensor in tensors.items()}
        yield Fragment(names[id(parameter)], offset, parts, slice(None))
