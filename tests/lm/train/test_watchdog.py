"""Which rank is lost, told from the signs of all; `tests/benchmarks/test_chaos.py` loses real ones."""

from __future__ import annotations

import sys
import threading
from typing import Any

import pytest
import torch

from lm.train.distributed import World
from lm.train.watchdog import Beat, connection_broke, lost, where


def beat(count: int, idle: float = 0.0, place: str = "lm/x.py:1 (f)", waiting: bool = False) -> Beat:
    return Beat(count, idle, 7, place, waiting)


def test_a_rank_without_a_sign_is_named() -> None:
    verdict = lost([beat(5), beat(9), beat(5)], [beat(8), beat(9), beat(8)])
    assert verdict is not None
    assert verdict[0] == [1]
    assert "rank 1 gave no sign" in verdict[1]


def test_a_rank_that_does_not_come_to_the_others_is_named_with_its_place() -> None:
    waiting, busy = beat(8, 60, waiting=True), beat(8, 61, "lm/data/rows.py:57 (fill)")
    verdict = lost([beat(5), beat(5), beat(5)], [waiting, busy, waiting])
    assert verdict is not None
    found, what = verdict
    assert found == [1]
    assert "rank 1 did not go on for 61 s while the others waited: rank 1 is at lm/data/rows.py:57 (fill)" in what


def test_where_all_wait_for_each_other_everyone_is_shown() -> None:
    after = [beat(8, 60, "lm/a.py:1 (a)", waiting=True), beat(8, 61, "lm/b.py:2 (b)", waiting=True)]
    verdict = lost([beat(5), beat(5)], after)
    assert verdict is not None
    assert verdict[0] == []
    assert "rank 0 is at lm/a.py:1 (a); rank 1 is at lm/b.py:2 (b)" in verdict[1]


def test_where_nobody_waits_nobody_is_lost() -> None:
    assert lost([beat(5), beat(5)], [beat(8, 60), beat(8, 61)]) is None


def test_one_that_goes_on_while_others_wait_is_but_slow() -> None:
    """As a rank whose share of a checkpoint takes longer than the others'."""
    waiting, writing = beat(8, 600, waiting=True), beat(8, 1, "lm/train/tensor_file.py:58 (writing_tensors)")
    assert lost([beat(5), beat(5)], [waiting, writing]) is None


def test_a_thread_is_found_in_our_code() -> None:
    inside, leave = threading.Event(), threading.Event()

    def wait() -> None:
        lost_frames.append(threading.get_ident())
        inside.set()
        leave.wait()

    lost_frames: list[Any] = []
    thread = threading.Thread(target=wait)
    thread.start()
    inside.wait()
    place, waiting = where(sys._current_frames()[lost_frames[0]])
    leave.set()
    thread.join()
    assert place.startswith("tests/lm/train/test_watchdog.py:")
    assert place.endswith("(wait)")
    assert not waiting


def test_a_rank_waits_for_others_where_it_reads_what_they_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    """A collective of NCCL returns at once; its result is what one waits for."""
    inside, leave = threading.Event(), threading.Event()

    class OnTheWay:
        def to(self, *how: object, **also: object) -> OnTheWay:
            return self

        def cpu(self) -> None:
            inside.set()
            leave.wait()

    monkeypatch.setattr("torch.distributed.all_reduce", lambda tensor: None)
    world: Any = World(0, 2, torch.device("cpu"), None)
    thread = threading.Thread(target=lambda: world.sum(OnTheWay()))
    thread.start()
    inside.wait()
    assert thread.ident is not None
    frame = sys._current_frames()[thread.ident].f_back  # of `cpu`, which in PyTorch is not Python
    while frame is not None and frame.f_code.co_name != "sum":
        frame = frame.f_back
    place, waiting = where(frame)
    leave.set()
    thread.join()
    assert place.startswith("lm/train/distributed.py:")
    assert waiting


def test_a_broken_connection_is_told_from_other_failures() -> None:
    text = "[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:37191"
    assert connection_broke(RuntimeError(text))
    assert not connection_broke(RuntimeError("size of tensor a (0) must match"))
