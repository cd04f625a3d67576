"""The checkpoints of one run: when they are written, which are kept, and how a run is put back to one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from lm.errors import UserError
from lm.train import checkpoint, manifest, random_state, retention
from lm.train.checkpoint import Counters
from lm.train.engine import Engine
from lm.train.folder import Run, RunFolder
from lm.train.periodic import at_interval
from lm.train.resumption import require_fit
from lm.train.writing import HostMemory, SaveError, Writing

PATIENCE_SECONDS = (1.0, 4.0, 10.0)
"""Between the attempts at a checkpoint that the program must not end without."""


class Saving:
    """Writes the state of a run, and restores it. Every method is collective unless it says otherwise."""

    def __init__(
        self,
        run: Run,
        folder: RunFolder,
        engine: Engine,
        say: Callable[[str], None],
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        """`say`: shows a person one line of text. `pulse`: called while a checkpoint is waited for, or read."""
        self._run = run
        self.root = folder.checkpoints
        self._engine = engine
        self._world = engine.world
        self._say = say
        self._pulse = pulse
        self._memory = HostMemory()
        self._writing: Writing | None = None
        self._saved: int | None = None
        self._failures = 0
        self._retry_at: int | None = None

    def restore(self, expected: Counters) -> Counters:
        """Puts weights, moments and random numbers where the newest good checkpoint left them; returns its counters.

        Without one, seeds the random numbers and returns what is `expected`. Raises UserError where the checkpoint
        is of other data or other frozen weights than `expected`.
        """
        found = checkpoint.newest(self.root, self._world, self._say, self._pulse)
        if found is None:
            random_state.seed(self._run.train.seed, 0, self._world.rank)
            return replace(expected, world=self._world.size)
        counters = self.restore_from(found, expected)
        self._say(f"going on from step {counters.step} ({found})")
        return counters

    def restore_from(self, found: Path, expected: Counters) -> Counters:
        """The same from one checkpoint, whose files are good."""
        rank, size = self._world.rank, self._world.size
        counters = checkpoint.read_counters(found)
        require_fit(counters, expected, self._run, found)
        checkpoint.load(found, self._engine.fragments())
        self._engine.restored(counters.adam_step, counters.loss_scaler)
        if counters.world == size:
            checkpoint.load_random_state(found, rank)
        else:
            random_state.seed(self._run.train.seed, counters.step, rank)
        self._saved = counters.step
        return replace(counters, world=size, data_parts=expected.data_parts)

    def is_good(self, folder: Path) -> bool:
        """Whether the files of a checkpoint are as they were written."""
        return checkpoint.fault(folder, self._world, self._pulse) is None

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written when `step` steps are done. Not collective; all ranks answer alike."""
        train = self._run.train
        retry = self._retry_at is not None and step >= self._retry_at
        return retry or at_interval(step, train.checkpoint_every, train.steps)

    def save(self, counters: Counters, sync: Callable[[], None]) -> None:
        """Begins a checkpoint, which `poll` makes current. A full disk is said and survived, and tried again.

        sync: puts on the disk what belongs to the steps before, on rank 0; may raise OSError.
        """
        self.settle()
        beside_training = self._run.train.asynchronous_checkpoints
        try:
            self._begin(counters, sync, beside_training)
        except SaveError as error:
            self._failed(error, counters.step)
        if not beside_training:
            self.settle()

    def poll(self) -> None:
        """To be called after every step: takes what has been written by now, without waiting for the disk."""
        self._take(lambda writing: writing.done())

    def settle(self) -> None:
        """Waits for the checkpoint that is being written, if there is one."""
        self._take(lambda writing: writing.finish(self._pulse))

    def save_now(self, counters: Counters, sync: Callable[[], None]) -> str:
        """Writes the checkpoint that a program ends with, and waits for it: what there is to go on from, in words.

        Tries again where the disk fails. Raises UserError where that does not help at the end of the run, or where
        there would be no checkpoint at all.
        """
        self.settle()
        for patience in (*PATIENCE_SECONDS, None):
            if self._saved == counters.step:
                break
            try:
                self._begin(counters, sync, beside_training=False)
                assert self._writing is not None
                self._written(self._writing.finish(self._pulse))
            except SaveError as error:
                self._writing = None
                if patience is not None:
                    self._make_room(error)
                    self._say(f"{error}; trying again in {patience:.0f} s")
                    time.sleep(patience)
                elif counters.step == self._run.train.steps or not manifest.checkpoints(self.root):
                    raise UserError(f"{error}. Make room, then start again: {self.kept()}.") from None
                else:
                    self._say(str(error))
        return self.kept()

    def kept(self) -> str:
        """What there is to go on from, in words. Not collective."""
        kept = manifest.checkpoints(self.root)
        return f"{kept[0]} is kept" if kept else "there is no checkpoint"

    def _begin(self, counters: Counters, sync: Callable[[], None], beside_training: bool) -> None:
        counters = replace(counters, adam_step=self._engine.adam_step, loss_scaler=self._engine.loss_scaler)
        memory = self._memory if beside_training else None
        share = checkpoint.share_of(counters, self._engine.buffers(), self._world.rank, memory)
        self._writing = Writing(self.root, counters.step, share, self._world, sync, beside_training)

    def _take(self, ask: Callable[[Writing], Path | None]) -> None:
        if self._writing is None:
            return
        try:
            folder = ask(self._writing)
        except SaveError as error:
            self._failed(error, self._writing.step)
            self._writing = None
            return
        if folder is not None:
            self._written(folder)

    def _written(self, folder: Path) -> None:
        self._writing = self._retry_at = None
        self._failures = 0
        self._saved = manifest.step_of(folder)
        if self._world.rank == 0:
            manifest.tidy(self.root, retention.dropped(found(self.root, self._say), self._run.train))

    def _failed(self, error: SaveError, step: int) -> None:
        self._make_room(error)
        wait = min(1 << self._failures, self._run.train.checkpoint_every or 1 << self._failures)
        self._failures += 1
        self._retry_at = step + wait
        self._say(f"{error}; {self.kept()}; trying again after step {self._retry_at}")

    def _make_room(self, error: SaveError) -> None:
        """On a full disk, the older of the newest checkpoints go, once the newest of all is known to be good."""
        if not error.no_room:
            return
        kept = self._world.on_rank_zero(lambda: found(self.root, self._say))
        spare = retention.spare(kept, self._run.train)
        if not spare or not self.is_good(next(iter(kept))):
            return
        if self._world.rank == 0:
            for folder in spare:
                manifest.remove(folder)
        self._say(f"the disk is full: {', '.join(folder.name for folder in spare)} made room for the next checkpoint")


def found(root: Path, say: Callable[[str], None]) -> dict[Path, Counters]:
    """All checkpoints that say where they stand, newest first, with what they say; others are named through `say`."""
    result = {}
    for folder in manifest.checkpoints(root):
        try:
            result[folder] = checkpoint.read_counters(folder)
        except (OSError, ValueError, TypeError) as error:
            say(f"checkpoint {folder} cannot be read ({error}): it is left as it is")
    return result
