"""A checkpoint on its way to the disk, in one process."""

import errno
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lm.train import checkpoint, distributed, manifest, writing
from lm.train.checkpoint import Counters
from lm.train.distributed import World
from lm.train.handover import NICENESS
from lm.train.shards import Fragment
from lm.train.writing import HostMemory, SaveError, Writing


@pytest.fixture(scope="module")
def world() -> World:
    return distributed.join()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Files are written once it is set."""
    real, open_now = writing.writing_tensors, threading.Event()

    def wait(*arguments: Any) -> Any:
        assert open_now.wait(30)
        return (yield from real(*arguments))

    monkeypatch.setattr(writing, "writing_tensors", wait)
    yield open_now
    open_now.set()


def state() -> dict[str, Tensor]:
    return {kind: torch.arange(6.0) + number for number, kind in enumerate(("weight", "exp_avg", "exp_avg_sq"))}


def begin(root: Path, parts: dict[str, Tensor], world: World, step: int = 3) -> Writing:
    fragments = [Fragment("w", 0, parts, slice(None))]
    share = checkpoint.share_of(Counters(step=step), [fragments], 0, HostMemory())
    return Writing(root, step, share, world, beside_training=True)


def test_training_may_go_on_at_once(tmp_path: Path, world: World, gate: threading.Event) -> None:
    parts = state()
    on_its_way = begin(tmp_path, parts, world)
    assert on_its_way.done() is None
    assert manifest.checkpoints(tmp_path) == []
    for part in parts.values():
        part.fill_(-1)  # the next steps
    gate.set()
    folder = on_its_way.finish()
    assert manifest.checkpoints(tmp_path) == [folder]
    assert manifest.damage(folder) is None
    found = {kind: torch.empty(6) for kind in parts}
    checkpoint.load(folder, [Fragment("w", 0, found, slice(None))])
    for kind, expected in state().items():
        assert torch.equal(found[kind], expected)


def test_it_becomes_current_without_being_waited_for(tmp_path: Path, world: World, gate: threading.Event) -> None:
    on_its_way = begin(tmp_path, state(), world)
    gate.set()
    folder = None
    for _ in range(3000):
        if folder := on_its_way.done():
            break
        threading.Event().wait(0.01)
    assert folder == manifest.checkpoints(tmp_path)[0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priorities of their own")
def test_the_thread_gives_way_to_training_and_who_waits_does_the_rest(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, begun, waited_for = writing.writing_tensors, threading.Event(), threading.Event()
    seen = []

    def two_files(*arguments: Any) -> Any:
        seen.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        if len(seen) == 1:
            begun.set()
            assert waited_for.wait(30)
        return (yield from real(*arguments))

    monkeypatch.setattr(writing, "writing_tensors", two_files)
    on_its_way = begin(tmp_path, state(), world)
    assert begun.wait(30)
    assert on_its_way.done() is None
    on_its_way._work._waited_for.set()  # as `finish` does, before it waits for the piece that the thread is at
    waited_for.set()
    folder = on_its_way.finish()
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert seen == [max(usual, NICENESS), usual]
    assert manifest.damage(folder) is None


def test_what_is_waited_for_is_written_without_a_copy(tmp_path: Path, world: World) -> None:
    parts = state()
    share = checkpoint.share_of(Counters(), [[Fragment("w", 0, parts, slice(None))]], 0)
    parts["weight"].fill_(7)  # nobody does, as everybody waits
    pulses: list[int] = []
    folder = Writing(tmp_path, 1, share, world).finish(lambda: pulses.append(1))
    assert len(pulses) > len(parts), "the watchdog hears of every piece"
    found = {kind: torch.empty(6) for kind in parts}
    checkpoint.load(folder, [Fragment("w", 0, found, slice(None))])
    assert (found["weight"] == 7).all()


@pytest.mark.parametrize(("number", "no_room"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False)])
def test_what_the_disk_refuses_leaves_nothing_behind(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, number: int, no_room: bool
) -> None:
    before = begin(tmp_path, state(), world, step=1).finish()

    def refuse(path: Path, *rest: Any) -> Any:
        yield path.write_bytes(b"half")
        raise OSError(number, "refused", str(path))

    monkeypatch.setattr(writing, "writing_tensors", refuse)
    with pytest.raises(SaveError, match="checkpoint of step 2 was not written: refused") as refused:
        begin(tmp_path, state(), world, step=2).finish()
    assert refused.value.no_room == no_room
    assert list(tmp_path.iterdir()) == [before]
