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
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from lm.data.readers import Document
from lm.data.threads import cpu_cores, use_threads
from lm.errors import UserError

ResultT = TypeVar("ResultT")
_REPORT_BYTES = 4_000_000
Heard = Callable[[int, tuple[int, ...]], None]
"""Hears (job, figures) of work under way: what has been done since it was last heard of."""
Progress = Callable[[str, int, int], None]
"""Hears (what is being done, bytes done, bytes in all); all is an estimate, and 0 where progress cannot be told."""


@dataclass(frozen=True)
class Crew:
    """Who works on the sources.

    Attributes:
        report: hears of it.
        processes: on this node; None for one for each core.
        node: (k, n) for node k of n, k from 1; it takes every n-th shard from the k-th on.
    """

    report: Progress
    processes: int | None = None
    node: tuple[int, int] = (1, 1)

    def run(
        self, function: Callable[[int, Callable[..., None]], ResultT], jobs: Sequence[int], heard: Heard
    ) -> Iterator[tuple[int, ResultT]]:
        """What `run_jobs` gives, in this node's processes."""
        return run_jobs(function, jobs, self.processes or cpu_cores(), heard)


def reporting(documents: Iterable[Document], report: Callable[..., None]) -> Iterator[Document]:
    """The documents; `report` hears (bytes of text, 0 documents, 0 tokens) that have passed by."""
    passed = 0
    for document in documents:
        yield document
        passed += len(document.utf8)
        if passed >= _REPORT_BYTES:
            report(passed, 0, 0)
            passed = 0
    report(passed, 0, 0)


def run_jobs(
    function: Callable[[int, Callable[..., None]], ResultT], jobs: Sequence[int], processes: int, heard: Heard
) -> Iterator[tuple[int, ResultT]]:
    """`function(job, report)` for each job, in the order in which they end; `report(*figures)` reaches `heard`.

    With one process or one job that is this process. Otherwise each process encodes on one thread; they are forked
    where that is possible, so that they start at once and load nothing, and elsewhere `function` is pickled.

    Raises:
        UserError: of a job, or a process that was killed; the others are ended.
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
        if process.exitcode == -signal.SIGKILL:
            raise UserError(
                "one of the processes that prepare the data was killed, which is what systems do when memory runs out. "
                "What is finished is kept: call `braid prepare CONFIG --processes N` with fewer processes to go on."
            ) from None
        raise RuntimeError(f"a worker ended with exit code {process.exitcode}") from None
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
