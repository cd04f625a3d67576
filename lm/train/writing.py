"""Writing a checkpoint while training goes on: copied to host memory, written by a thread, made current at the end.

Threads only write files. What ranks tell each other, they tell between steps in the main thread, so no collective of a
thread can come between those of training. The thread leaves the processors to training; when training has to wait for
it, it hands what is left over to the main thread, which nobody holds up.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lm.errors import UserError
from lm.train import manifest
from lm.train.distributed import World
from lm.train.handover import Handover
from lm.train.random_state import State
from lm.train.tensor_file import FileEntry, write_text, writing_tensors

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def saying_that_the_disk_is_full() -> Iterator[None]:
    """Makes a UserError of the errors of a full disk that nothing else has met."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
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

    def write(self, folder: Path) -> Generator[None, None, dict[str, FileEntry]]:
        """Writes the files, piece by piece, and says what was written. Raises OSError."""
        written = {}
        with closing(self.state):
            for name, content in chain(self.state, self.tensors.items()):
                written[name] = yield from writing_tensors(folder / name, *content)
        return written | {name: write_text(folder / name, text) for name, text in self.texts.items()}


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
        """Begins. `share` must stay as it is until this has ended.

        first: what rank 0 puts on the disk before; may raise OSError. beside_training: whether a thread writes while
        steps are made; without it `finish` does.
        """
        self.step = step
        self._world = world
        self._folder = manifest.folder_of(root, step).with_suffix(".tmp")
        self._files: dict[str, FileEntry] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if beside_training else None

        def begin() -> None:
            if world.rank == 0:
                first()
                manifest.begin(root, step)

        self._agree(begin)
        self._work: Handover[Any] = Handover(share.write(self._folder), self._thread)

    def done(self) -> Path | None:
        """The checkpoint's folder if it is current by now, without waiting for the disk."""
        while not self._world.sum(torch.tensor(float(not self._work.done()))):
            if self._advance():
                return self._end()
        return None

    def finish(self, pulse: Callable[[], None] = lambda: None) -> Path:
        """Writes what is left, and returns the checkpoint's folder when it is current.

        pulse: called again and again while this goes on.
        """
        self._end()
        while not self._advance(pulse):
            pass
        return self._end()

    def _advance(self, pulse: Callable[[], None] = lambda: None) -> bool:
        """Takes what was written and goes on; True when the checkpoint is current."""
        found = self._agree(lambda: self._work.result(pulse))
        if self._files is not None:
            return True
        self._files = {name: entry for share in found for name, entry in share.items()}
        self._work = Handover(self._commit(self._files), self._thread)
        return False

    def _commit(self, files: Mapping[str, FileEntry]) -> Generator[None, None, None]:
        yield from ()  # in one piece
        if self._world.rank == 0:
            manifest.commit(self._folder, files)

    def _agree(self, work: Callable[[], Any]) -> list[Any]:
        """What work returned on each rank. Raises SaveError if the disk failed any of them."""
        result = failure = None
        no_room = False
        try:
            result = work()
        except OSError as error:
            failure = f"{error.strerror or error} ({error.filename or 'rank ' + str(self._world.rank)})"
            no_room = error.errno in NO_ROOM
        outcomes = self._world.gather((result, failure, no_room))
        failed = next((outcome for outcome in outcomes if outcome[1]), None)
        if failed is None:
            return [outcome[0] for outcome in outcomes]
        if self._world.rank == 0:
            manifest.discard(self._folder)
        self._end()
        raise SaveError(f"checkpoint of step {self.step} was not written: {failed[1]}", failed[2])

    def _end(self) -> Path:
        """No more work for the thread, which ends with what it is at."""
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None
        return self._folder.with_suffix("")
