"""Writing a checkpoint while training goes on: copied to host memory, written by a thread, made current at the end.

Threads only write files. What ranks tell each other, they tell between steps in the main thread, so no collective of a
thread can come between those of training.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm.errors import UserError
from lm.train import manifest
from lm.train.distributed import World
from lm.train.random_state import State
from lm.train.tensor_file import FileEntry, write_tensors, write_text

WRITER_NICENESS = 15
"""At 0 training waits for the writer; at 19 whoever waits for the writer, on a machine full of others, waits long."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def saying_that_the_disk_is_full() -> Iterator[None]:
    """Makes a UserError of the errors of a full disk that nothing else has met."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise UserError(f"train.output_dir: {error}. Make room, then start again: nothing is lost.") from None


class SaveError(Exception):
    """A checkpoint could not be written; the ones before it are untouched. no_room: because the disk is full."""

    def __init__(self, message: str, no_room: bool) -> None:
        super().__init__(message)
        self.no_room = no_room


TensorFiles = Generator[tuple[str, State], None, None]
"""Names of files with what goes into them, made one after another."""


@dataclass(frozen=True)
class Share:
    """What one rank writes of a checkpoint, once: files by name.

    tensors: as they are. state: made one after another, since all of it may not fit into memory.
    """

    tensors: Mapping[str, State]
    state: TensorFiles
    texts: Mapping[str, str]

    def write(self, folder: Path) -> dict[str, FileEntry]:
        """Writes the files and says what was written. Raises OSError."""
        with closing(self.state):
            written = {name: write_tensors(folder / name, *content) for name, content in self.state}
        written |= {name: write_tensors(folder / name, *content) for name, content in self.tensors.items()}
        return written | {name: write_text(folder / name, text) for name, text in self.texts.items()}


def give_way() -> None:
    """Lets the calling thread run where others leave a processor idle, and else for a thirtieth of one's time.

    A step's threads wait for each other many times a step, so that a writer which takes one's processor holds up all:
    on two cores a step took five times as long. On Linux alone a thread has a priority of its own.
    """
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), WRITER_NICENESS)


class HostMemory:
    """Copies of tensors that stay as they are while training changes the originals; the memory is used again."""

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}

    def copy(self, name: str, tensor: Tensor) -> Tensor:
        """A contiguous copy in host memory, valid until the next one of this name."""
        kept = self._copies.get(name)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._copies[name] = kept
        return kept.copy_(tensor)


class Writing:
    """One checkpoint on its way to the disk. Every method is collective and raises SaveError on all ranks or none."""

    def __init__(
        self,
        root: Path,
        step: int,
        share: Share,
        world: World,
        first: Callable[[], None] = lambda: None,
        beside_training: bool = False,
    ) -> None:
        """Begins: threads write from here on. `share` must stay as it is until this has ended.

        first: what rank 0 puts on the disk before; may raise OSError. beside_training: whether steps are to be made
        meanwhile, to which the threads leave the processors.
        """
        self.step = step
        self._world = world
        self._folder = manifest.folder_of(root, step).with_suffix(".tmp")
        self._files: dict[str, FileEntry] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")

        def begin() -> None:
            if world.rank == 0:
                first()
                manifest.begin(root, step)

        def write() -> dict[str, FileEntry]:
            if beside_training:
                give_way()
            return share.write(self._folder)

        self._job = self._start(begin)
        self._agree()
        self._job = self._start(write)

    def done(self) -> Path | None:
        """The checkpoint's folder if it is current by now, without waiting for the disk."""
        while not self._world.sum(torch.tensor(float(not self._job.done()))):
            if self._advance():
                return self._end()
        return None

    def finish(self) -> Path:
        """Waits until the checkpoint is current, and returns its folder."""
        while not self._advance():
            pass
        return self._end()

    def _start(self, work: Callable[[], Any]) -> Future[Any]:
        return self._thread.submit(work)

    def _advance(self) -> bool:
        """Takes what the threads have done and goes on; True when the checkpoint is current."""
        found = self._agree()
        if self._files is not None:
            return True
        files = {name: entry for share in found for name, entry in share.items()}
        self._files = files
        self._job = self._start(lambda: manifest.commit(self._folder, files) if self._world.rank == 0 else None)
        return False

    def _agree(self) -> list[Any]:
        """What each rank's thread returned. Raises SaveError if the disk failed any of them."""
        result = failure = None
        no_room = False
        try:
            result = self._job.result()
        except OSError as error:
            failure = f"{error.strerror or error} ({error.filename or 'rank ' + str(self._world.rank)})"
            no_room = error.errno in _NO_ROOM
        outcomes = self._world.gather((result, failure, no_room))
        failed = next((outcome for outcome in outcomes if outcome[1]), None)
        if failed is None:
            return [outcome[0] for outcome in outcomes]
        if self._world.rank == 0:
            manifest.discard(self._folder)
        self._thread.shutdown()
        raise SaveError(f"checkpoint of step {self.step} was not written: {failed[1]}", failed[2])

    def _end(self) -> Path:
        self._thread.shutdown()
        return self._folder.with_suffix("")
