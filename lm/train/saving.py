"""The checkpoints of one run: when they are written, which are kept, and how a run is put back to one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from lm.errors import UserError
from lm.train import checkpoint, random_state
from lm.train.checkpoint import Counters, SaveError
from lm.train.engine import Engine
from lm.train.folder import Run, RunFolder
from lm.train.manifest import checkpoints, keep_newest
from lm.train.periodic import at_interval
from lm.train.resumption import require_fit


class Saving:
    """Writes the state of a run, and restores it. Every method is collective."""

    def __init__(self, run: Run, folder: RunFolder, engine: Engine, say: Callable[[str], None]) -> None:
        """`say`: shows a person one line of text."""
        self._run = run
        self._root = folder.checkpoints
        self._engine = engine
        self._world = engine.world
        self._say = say

    def restore(self, expected: Counters) -> Counters:
        """Puts weights, moments and random numbers where the newest good checkpoint left them; returns its counters.

        Without one, seeds the random numbers and returns what is `expected`. Raises UserError where the checkpoint
        is of other data or other frozen weights than `expected`.
        """
        seed, rank, size = self._run.train.seed, self._world.rank, self._world.size
        found = checkpoint.newest(self._root, self._world, self._say)
        if found is None:
            random_state.seed(seed, 0, rank)
            return replace(expected, world=size)
        counters = checkpoint.read_counters(found)
        require_fit(counters, expected, self._run, found)
        checkpoint.load(found, self._engine.fragments())
        self._engine.restored(counters.adam_step)
        if counters.world == size:
            checkpoint.load_random_state(found, rank)
        else:
            random_state.seed(seed, counters.step, rank)
        self._say(f"going on from step {counters.step} ({found})")
        return replace(counters, world=size)

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written when `step` steps are done."""
        return at_interval(step, self._run.train.checkpoint_every, self._run.train.steps)

    def save(self, counters: Counters) -> None:
        """Writes a checkpoint. A full disk is said and survived, except at the end, where UserError is raised."""
        counters = replace(counters, adam_step=self._engine.adam_step)
        try:
            checkpoint.save(self._root, counters, self._engine.fragments(), self._world)
        except SaveError as error:
            if counters.step == self._run.train.steps:
                raise UserError(f"{error}. Make room, then start again to go on from the one before it.") from None
            self._say(f"{error}; the one before it is kept")
            return
        if self._world.rank == 0:
            keep_newest(self._root, self._run.train.keep_checkpoints)

    def kept(self) -> str:
        """What there is to go on from, in words."""
        kept = checkpoints(self._root)
        return f"{kept[0]} is kept" if kept else "there is no checkpoint"
