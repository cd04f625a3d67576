"""Ranks watch over each other: where one ends or stands still, the others stop too, and say which one it was."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

import torch.distributed as dist

from lm.train import distributed
from lm.train.distributed import World

T = TypeVar("T")

RANK_LOST = 75
"""Exit code, EX_TEMPFAIL of sysexits.h: the run is sound, and starting it again goes on with it."""
BEAT_SECONDS = 0.5
SILENT_SECONDS = 4.0
"""A process that gives no sign for so long, while others ask, is not running."""
_HOME_IS_SILENT = "rank 0, or the launcher, which keeps the signs of life of all ranks, gave none: ended or stopped"
# A collective of NCCL returns at once, and what it gave is waited for in the third of these.
_WAITING = (f"torch{os.sep}distributed{os.sep}", f"deepspeed{os.sep}comm{os.sep}", distributed.__file__)
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Beat:
    """A rank's sign of life.

    count: how many it gave. idle: seconds since its training last went on. step: which one it is in. place: where in
    the code it is. waiting: whether that is for other ranks.
    """

    count: int
    idle: float
    step: int
    place: str
    waiting: bool


def lost(earlier: Sequence[Beat], later: Sequence[Beat]) -> tuple[list[int], str] | None:
    """The ranks that hold up the others, and what became of them; None where all are but slow.

    That is so where nobody waits, and where one that others wait for goes on, as one that writes a large checkpoint.
    earlier, later: beats of all ranks. Where all wait for each other, no rank is named, and the places of all are.
    """
    silent = [rank for rank, (a, b) in enumerate(zip(earlier, later, strict=True)) if a.count == b.count]
    if silent:
        return silent, f"{_ranks(silent)} gave no sign for {SILENT_SECONDS:.0f} s: ended, stopped or unreachable"
    busy = [rank for rank, beat in enumerate(later) if not beat.waiting]
    if len(busy) == len(later) or any(later[rank].idle < SILENT_SECONDS for rank in busy):
        return None
    if busy:
        where = "; ".join(f"rank {rank} is at {later[rank].place}" for rank in busy)
        return busy, f"{_ranks(busy)} did not go on for {later[busy[0]].idle:.0f} s while the others waited: {where}"
    where = "; ".join(f"rank {rank} is at {beat.place}" for rank, beat in enumerate(later))
    return [], f"no rank went on for {min(beat.idle for beat in later):.0f} s: {where}"


class Watchdog:
    """Gives a sign of life of this rank while it is entered, and looks for the others' when this one is held up.

    Nothing is asked of the others as long as training goes on. Where it does not for `timeout` seconds, or where a
    connection breaks, one rank says which is lost and all end with RANK_LOST. Use it as a context manager, around work
    that calls `pulse` at least once in `timeout` seconds.
    """

    def __init__(self, world: World, timeout: float | None) -> None:
        """`timeout`: None waits for ever for a rank that is there but does not go on."""
        self._world = world
        self._timeout = timeout
        self._pulse = (time.monotonic(), 0)
        self._main = threading.get_ident()
        self._over = threading.Event()
        self._home_gone = threading.Event()
        self._counts = 0
        self._store: Any = None

    def pulse(self, step: int) -> None:
        """To be called whenever training has gone on."""
        self._pulse = (time.monotonic(), step)

    def __enter__(self) -> Self:
        if self._world.size > 1:
            # A connection of its own: while one call waits for an answer, others on the same connection wait too.
            default: Any = dist.distributed_c10d._get_default_store()
            store = default.clone()
            self._store = dist.distributed_c10d.PrefixStore(f"watchdog/{id_of_attempt()}", store)
            self._beat()
            self._world.barrier()  # every rank's first sign is there
            self.pulse(self._pulse[1])
            for work in (self._give_signs, self._watch):
                threading.Thread(target=work, name=f"watchdog{work.__name__}", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._store is None:
            return
        if isinstance(error, RuntimeError) and connection_broke(error):
            verdict = self._lost()
            if verdict is not None and verdict[0]:
                self._say(verdict[1])
                self._over.set()
                os._exit(RANK_LOST)
        self._over.set()

    def _give_signs(self) -> None:
        """In a thread of its own, since whoever keeps the signs may take them no more, without a word."""
        while not self._over.wait(BEAT_SECONDS):
            try:
                self._beat()
            except RuntimeError:
                self._home_gone.set()
                return

    def _watch(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            if self._late():
                verdict = self._lost()
                if verdict is None or not self._late():
                    continue  # slow, not lost
                what = verdict[1]
            elif self._home_gone.is_set() and not self._over.wait(SILENT_SECONDS):
                what = _HOME_IS_SILENT
            else:
                continue
            if not self._over.is_set():
                self._say(what)
                os._exit(RANK_LOST)

    def _late(self) -> bool:
        return self._timeout is not None and time.monotonic() - self._pulse[0] > self._timeout

    def _beat(self) -> None:
        self._counts += 1
        pulsed, step = self._pulse
        place, waiting = where(sys._current_frames().get(self._main))
        beat = Beat(self._counts, time.monotonic() - pulsed, step, place, waiting)
        self._store.set(str(self._world.rank), json.dumps(asdict(beat)))

    def _beats(self) -> list[Beat]:
        keys = [str(rank) for rank in range(self._world.size)]
        return [Beat(**json.loads(value)) for value in self._store.multi_get(keys)]

    def _lost(self) -> tuple[list[int], str] | None:
        def compare() -> list[tuple[list[int], str] | None]:
            earlier = self._beats()
            time.sleep(SILENT_SECONDS)
            return [lost(earlier, self._beats())]

        found = answer(compare, 3 * SILENT_SECONDS)
        return ([0], _HOME_IS_SILENT) if found is None else found[0]

    def _say(self, what: str) -> None:
        """Says it, if no other rank has: those that end on account of the lost one are not to be named too."""
        mine = f"{self._world.rank}: {what}"
        verdict = answer(lambda: self._store.compare_set("verdict", "", mine).decode(), SILENT_SECONDS)
        if verdict in (None, mine):
            _print(f"{what} (step {self._pulse[1]}). All ranks stop; start again to go on from the newest checkpoint.")
        else:
            time.sleep(1.0)  # launchers end all ranks when one does, so the message goes first


def answer(ask: Callable[[], T], seconds: float) -> T | None:
    """What `ask` returns; None where it fails, or has not returned by then.

    A store's own timeout does not do: it asks whoever does not answer to forget the question, and waits for that.
    """
    answers: list[T] = []

    def work() -> None:
        with suppress(RuntimeError):
            answers.append(ask())

    thread = threading.Thread(target=work, name="watchdog_ask", daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


def where(frame: FrameType | None) -> tuple[str, bool]:
    """The innermost place in our own code that a thread is at, and whether it waits for other ranks there."""
    waiting, innermost = False, None
    while frame is not None:
        path = frame.f_code.co_filename
        innermost = innermost or f"{path}:{frame.f_lineno} ({frame.f_code.co_name})"
        if any(part in path for part in _WAITING):
            waiting = True
        if _ROOT in Path(path).parents and ".venv" not in path:
            return f"{Path(path).relative_to(_ROOT)}:{frame.f_lineno} ({frame.f_code.co_name})", waiting
        frame = frame.f_back
    return innermost or "its end", waiting


def connection_broke(error: BaseException) -> bool:
    """Whether a collective failed because a rank is not there any more, as gloo and NCCL tell it."""
    text = str(error).lower()
    signs = ("closed by peer", "reset by peer", "broken pipe", "connection refused", "timed out", "socket", "nccl")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)


def id_of_attempt(environment: Mapping[str, str] = os.environ) -> str:
    """A launcher that starts the ranks again may keep the store, with the signs of those before."""
    return environment.get("TORCHELASTIC_RESTART_COUNT", "0")


def _ranks(ranks: Sequence[int]) -> str:
    names = ", ".join(map(str, ranks))
    return f"rank {names}" if len(ranks) == 1 else f"ranks {names}"


def _print(message: str) -> None:
    sys.stderr.write(message + "\n")
    sys.stderr.flush()
