"""Checkpoints: the whole training state, written and read by all ranks, in a form that no rank count or stage owns.

A folder (see `lm.train.manifest`) holds, for each rank that wrote it, `state-*.safetensors` with its pieces of the
fp32 weights and AdamW moments as flat tensors `weight/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME` (the metadata say where
in the parameter each begins) and `random-*.safetensors` with its random generators; and one `counters.json`. The data
order is a pure function of the step, so the step is the data's position too. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from lm.errors import UserError
from lm.train import manifest, random_state
from lm.train.average import AVERAGE
from lm.train.distributed import World
from lm.train.shards import Fragment
from lm.train.writing import HostMemory, Share, TensorFiles, Writing

COUNTERS = "counters.json"


@dataclass(frozen=True)
class Counters:
    """Where a run stands.

    step: optimizer steps done, skipped ones included. adam_step: updates made. skipped: steps that were not finite.
    spikes: steps that the guard held back. tokens: training tokens seen. world: ranks that wrote the checkpoint.
    data: fingerprint of the prepared data. data_parts: of what it was made from, by name. frozen: of the weights that
    are not trained. unfinished: whether work that is due after this step was left for the next start. validation_loss:
    of an evaluation after this step, over at most so many `validation_tokens`, or, where that is None, over all of the
    text. guard: what the guard remembers (`lm.train.guard.Memory`).
    loss_scaler: see `Engine.loss_scaler`.
    """

    step: int = 0
    adam_step: int = 0
    skipped: int = 0
    tokens: int = 0
    world: int = 0
    data: str = ""
    frozen: str = ""
    spikes: int = 0
    unfinished: bool = False
    validation_loss: float | None = None
    validation_tokens: int | None = None
    data_parts: Mapping[str, str] = field(default_factory=dict)
    guard: Mapping[str, Any] = field(default_factory=dict)
    loss_scaler: Mapping[str, float] = field(default_factory=dict)


def save(root: Path, counters: Counters, buffers: Iterable[Iterable[Fragment]], world: World) -> Path:
    """Writes a checkpoint and returns its folder. Collective; raises SaveError on all ranks if any rank failed."""
    return Writing(root, counters.step, share_of(counters, buffers, world.rank), world).finish()


def share_of(
    counters: Counters, buffers: Iterable[Iterable[Fragment]], rank: int, memory: HostMemory | None = None
) -> Share:
    """What a rank writes of the state as it is now: its fragments, a file for each buffer, and its random generators.

    memory: whereto fragments are copied now, so that training may go on; None reads each buffer when it is written.
    """
    files = _files(buffers, rank, memory)
    if memory is not None:
        copied = list(files)
        files = (file for file in copied)
    texts = {COUNTERS: json.dumps(asdict(counters))} if rank == 0 else {}
    return Share({f"random-{rank:05d}.safetensors": random_state.capture()}, files, texts)


def _files(buffers: Iterable[Iterable[Fragment]], rank: int, memory: HostMemory | None) -> TensorFiles:
    for number, fragments in enumerate(buffers):
        tensors: dict[str, Tensor] = {}
        offsets: dict[str, int] = {}
        for fragment in fragments:
            offsets[fragment.name] = fragment.offset + (fragment.own.start or 0)
            for kind, part in fragment.parts.items():
                name = f"{kind}/{fragment.name}"
                tensors[name] = part[fragment.own] if memory is None else memory.copy(name, part[fragment.own])
        name = f"state-{rank:05d}-{number:05d}" if number else f"state-{rank:05d}"
        yield f"{name}.safetensors", (tensors, {"offsets": json.dumps(offsets)})


def newest(
    root: Path, world: World, say: Callable[[str], None], pulse: Callable[[], None] = lambda: None
) -> Path | None:
    """The newest checkpoint whose files are all as they were written; None where there is none at all. Collective.

    pulse: called again and again while files are read.

    Damaged ones that are newer are named through `say` and set aside. Raises UserError, and touches nothing, where
    none is good, or where one cannot be judged (see `manifest.damage`).
    """
    damaged: dict[Path, str] = {}
    for folder in world.on_rank_zero(lambda: manifest.checkpoints(root)):
        found = fault(folder, world, pulse)
        if found is None:
            for bad, reason in damaged.items():
                aside = world.on_rank_zero(lambda bad=bad: manifest.set_aside(bad))  # type: ignore[misc]
                say(f"checkpoint {bad} is damaged: {reason}. It was moved to {aside.name}; going on with {folder}.")
            return folder
        damaged[folder] = found
    if damaged:
        lines = [f"  {folder}: {reason}" for folder, reason in damaged.items()]
        raise UserError(
            "every checkpoint of the run is damaged:\n" + "\n".join(lines) + "\n"
            f"Bring one back from a copy. To begin anew, remove {root} or choose another train.output_dir."
        )
    return None


def fault(folder: Path, world: World, pulse: Callable[[], None] = lambda: None) -> str | None:
    """What is wrong with a checkpoint, each rank having read a share of it. Collective; raises as `manifest.damage`.

    pulse: called again and again while files are read.
    """
    found = world.agree(lambda: manifest.damage(folder, world.rank, world.size, pulse))
    return next(filter(None, world.gather(found)), None)


def read_counters(folder: Path) -> Counters:
    """Where the run stood when the checkpoint was written."""
    return Counters(**json.loads((folder / COUNTERS).read_text()))


def load(folder: Path, fragments: Iterable[Fragment]) -> None:
    """Fills this rank's fragments from whichever files hold them. Raises UserError for a parameter that is not there.

    An average that a run has begun to keep since then begins at the weights.

    What the forward pass uses must be made to follow afterwards (`shards.publish`).
    """
    with torch.no_grad(), StateFiles(folder) as files:
        for fragment in fragments:
            for kind, part in fragment.parts.items():
                begins = kind == AVERAGE and not files.holds(kind, fragment.name)
                files.read("weight" if begins else kind, fragment.name, fragment.offset, part)


def load_random_state(folder: Path, rank: int) -> None:
    """Puts this process's random generators where the rank's were."""
    with safe_open(folder / f"random-{rank:05d}.safetensors", framework="pt") as file:
        random_state.restore(({name: file.get_tensor(name) for name in file.keys()}, file.metadata()))  # noqa: SIM118


class StateFiles:
    """The pieces of a checkpoint's state, read by parameter and position. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._pieces: dict[str, list[tuple[int, int, Any]]] = {}

    def __enter__(self) -> StateFiles:
        for path in sorted(self._folder.glob("state-*.safetensors")):
            file = self._stack.enter_context(safe_open(path, framework="pt"))
            for name, offset in json.loads(file.metadata()["offsets"]).items():
                (numel,) = file.get_slice(f"weight/{name}").get_shape()
                self._pieces.setdefault(name, []).append((offset, numel, file))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def holds(self, kind: str, name: str) -> bool:
        """Whether the files have this kind of tensor for a parameter."""
        return any(f"{kind}/{name}" in file.keys() for _, _, file in self._pieces.get(name, []))  # noqa: SIM118

    def read(self, kind: str, name: str, offset: int, into: Tensor) -> None:
        """Copies the elements from `offset` on of a flattened parameter into a 1-D tensor."""
        end = offset + into.numel()
        missing = into.numel()
        for start, numel, file in self._pieces.get(name, []):
            low, high = max(offset, start), min(end, start + numel)
            if low < high:
                into[low - offset : high - offset].copy_(file.get_slice(f"{kind}/{name}")[low - start : high - start])
                missing -= high - low
        if missing:
            raise UserError(f"{self._folder}: the checkpoint does not hold all of the parameter '{name}'")
