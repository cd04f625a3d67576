"""What a training needs of its ranks and of the machine, before data is read."""

from __future__ import annotations

from collections.abc import Callable

from lm.train.backends import prefer_backends
from lm.train.compilation import require_compiler
from lm.train.data_phase import require_whole_rows
from lm.train.distributed import World, launched_size
from lm.train.folder import Run
from lm.train.nvme import require_asynchronous_files
from lm.train.precision import require_precision
from lm.train.sharing import start_sharing


def start_ranks(run: Run, say: Callable[[str], None], section: str = "train") -> World:
    """The ranks as the run needs them, and the kernels it asks for. Raises UserError; see `require_whole_rows`.

    say: told what a person must wait for.
    """
    require_whole_rows(run, launched_size(), section)
    readers = launched_size() // run.train.sequence_parallel
    world = start_sharing(run.train, run.timeline.longest_forward(readers))
    world.agree(lambda: _require_machine(run, world))
    require_asynchronous_files(run.deepspeed, world, say)
    return world


def _require_machine(run: Run, world: World) -> None:
    require_precision(run.train.precision)
    require_compiler(run.train.compile)
    prefer_backends(run.train, run.trainee, world.device)
