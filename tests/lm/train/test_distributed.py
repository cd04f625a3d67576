"""A world of one rank."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lm.errors import UserError
from lm.train.distributed import World

# Printed where Python has run all that is to run at exit: what is left then may abort the process.
PROGRAM = """
import atexit, os
atexit.register(lambda: print(*(open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task"))))
from lm.train.distributed import join

def run():
    world = join()
    cycle = [world]
    cycle.append(cycle)
    world.barrier()

run()
"""


def test_it_speaks_to_nobody() -> None:
    world = World(0, 1, torch.device("cpu"), None)
    assert (world.gather(1), world.agree(lambda: 2), world.on_rank_zero(lambda: 3)) == ([1], 2, 3)

    def refuse() -> None:
        raise UserError("no")

    for ask in (world.agree, world.on_rank_zero):
        with pytest.raises(UserError, match=r"^no$"):
            ask(refuse)


@pytest.mark.launch
def test_no_thread_of_its_groups_outlives_python() -> None:
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "python" in done.stdout
    assert "gloo" not in done.stdout
