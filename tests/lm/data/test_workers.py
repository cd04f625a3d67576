"""Jobs in several processes: each done once, and whatever goes wrong in one is said by the one that asked."""

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lm.data.workers import run_jobs
from lm.errors import UserError


def square(job: int, report: Callable[..., None]) -> int:
    report(job, 1)
    return job * job


@pytest.mark.parametrize("processes", [1, 3])
def test_every_job_is_done_once_and_heard_of(processes: int) -> None:
    heard: list[tuple[int, tuple[int, ...]]] = []
    found = list(run_jobs(square, range(10), processes, lambda job, figures: heard.append((job, figures))))
    assert sorted(found) == [(job, job * job) for job in range(10)]
    assert sorted(heard) == [(job, (job, 1)) for job in range(10)]


def test_what_goes_wrong_in_a_process_is_said_here() -> None:
    def mistaken(job: int, report: Callable[..., None]) -> None:
        raise UserError(f"job {job} has a mistake")

    def at_fault(job: int, report: Callable[..., None]) -> None:
        raise ValueError(f"job {job} has a fault")

    def killed(job: int, report: Callable[..., None]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    for function, kind, said in (
        (mistaken, UserError, r"^job \d has a mistake$"),
        (at_fault, RuntimeError, r"job \d has a fault"),
        (killed, UserError, r"was killed.*--processes N"),
    ):
        with pytest.raises(kind, match=said):
            list(run_jobs(function, range(4), 2, lambda job, figures: None))
        assert not multiprocessing.active_children()


def test_a_process_ends_with_the_one_that_started_it_when_its_job_is_done(tmp_path: Path) -> None:
    def slow(job: int, report: Callable[..., None]) -> None:
        (tmp_path / f"{job} begun").touch()
        time.sleep(0.3)
        (tmp_path / f"{job} done").touch()

    parent = multiprocessing.get_context("fork").Process(target=lambda: list(run_jobs(slow, range(6), 2, print)))
    parent.start()
    while len(list(tmp_path.glob("* begun"))) < 2:
        time.sleep(0.01)
    parent.kill()
    parent.join()
    time.sleep(1)
    begun, done = ({path.name.split()[0] for path in tmp_path.glob(f"* {state}")} for state in ("begun", "done"))
    assert begun == done, "a job that was begun is finished"
    assert 2 <= len(begun) < 6, "no other is begun"
