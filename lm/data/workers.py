"""Jobs shared out among processes that die with the one that started them, and finish what they hold when they can.

A process that loses its parent sees its pipe closed and leaves; the job it has at that moment is still finished, which
is what makes work that is written in atomic pieces lose nothing.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from lm.data.threads import use_threads
from lm.errors import UserError

ResultT = TypeVar("ResultT")
Heard = Callable[[int, tuple[int, ...]], None]
"""Hears (job, figures) of work under way: what has been done since it was last heard of."""


def run_jobs(
    function: Callable[[int, Callable[..., None]], ResultT], jobs: Sequence[int], processes: int, heard: Heard
) -> Iterator[tuple[int, ResultT]]:
    """`function(job, report)` for each job, in the order in which they end; `report(*figures)` reaches `heard`.

    With one process or one job that is this process. Otherwise each process encodes on one thread; they are forked
    where that is possible, so that they start at once and load nothing, and elsewhere `function` is pickled.

    Raises:
        UserError: of a job; the others are ended.
    """
    if processes == 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, function(job, lambda *figures, job=job: heard(job, figures))
        return
    forked = sys.platform == "linux"
    context: Any = multiprocessing.get_context("fork" if forked else "spawn")
    waiting = list(reversed(jobs))
    workers: dict[Connection, Any] = {}
    try:
        for _ in range(min(processes, len(jobs))):
            ours, theirs = context.Pipe()
            # A fork holds copies of these, and would keep a sibling's pipe open when this process is gone.
            inherited = [*workers, ours] if forked else []
            process = context.Process(target=_work, args=(theirs, function, inherited), daemon=True)
            process.start()
            theirs.close()
            workers[ours] = process
            ours.send(waiting.pop())
        while workers:
            for pipe in wait(list(workers)):
                assert isinstance(pipe, Connection)
                ended = _hear(pipe, workers[pipe], heard)
                if ended is None:
                    continue
                if waiting:
                    pipe.send(waiting.pop())
                else:
                    pipe.close()
                    workers.pop(pipe).join()
                yield ended
    finally:
        for process in workers.values():
            process.terminate()
        for process in workers.values():
            process.join()


def _hear(pipe: Connection, process: Any, heard: Heard) -> tuple[int, Any] | None:
    """The result that a worker has, or None where it only reports."""
    try:
        kind, job, value = pipe.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"a worker ended with exit code {process.exitcode}: too little memory ends so") from None
    if kind == "report":
        heard(job, value)
        return None
    if kind == "mistake":
        raise UserError(value)
    if kind == "fault":
        raise RuntimeError(f"a worker failed:\n{value}")
    return job, value


def _work(
    pipe: Connection, function: Callable[[int, Callable[..., None]], Any], inherited: Sequence[Connection]
) -> None:
    for other in inherited:
        other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    use_threads(1)
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            job = pipe.recv()

            def report(*figures: int, job: int = job) -> None:
                with suppress(BrokenPipeError):  # the shard under way is finished without a listener, too
                    pipe.send(("report", job, figures))

            try:
                pipe.send(("result", job, function(job, report)))
            except UserError as error:
                pipe.send(("mistake", job, str(error)))
            except (BrokenPipeError, ConnectionResetError):
                return
            except Exception:
                pipe.send(("fault", job, traceback.format_exc()))
