"""Faults that befall a training of two ranks, for `benchmarks.chaos`: each takes a start of it to its end."""

from __future__ import annotations

import faulthandler
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from lm.errors import UserError
from lm.train.manifest import checkpoints
from lm.train.watchdog import RANK_LOST

RANKS = 2
PATIENCE_SECONDS = 180.0
"""A start that neither ends nor goes on for so long has failed the test."""
AT_ANY_MOMENT = ("SIGKILL to all ranks", "newest checkpoint truncated", "newest checkpoint with a flipped bit")
"""Kinds that may come while a start is not yet training, too."""


@dataclass
class Ranks:
    """The processes of one start of the run."""

    processes: list[ForkServerProcess]

    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)

    def send(self, number: signal.Signals, ranks: list[int]) -> None:
        for rank in ranks:
            process = self.processes[rank]
            if process.is_alive() and process.pid is not None:
                os.kill(process.pid, number)

    def join(self) -> list[int | None]:
        """The exit codes, once all have ended. Raises TimeoutError where they do not."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        codes = [process.exitcode for process in self.processes]
        if None in codes:
            self.send(signal.SIGKILL, list(range(RANKS)))
            raise TimeoutError(f"ranks did not end: {codes}")
        return codes


class Faults:
    """The kinds of faults. Each raises AssertionError where a rank ends as it must not."""

    def __init__(self, output: Path, moments: random.Random) -> None:
        """output: the run's folder; where the folder above it is a disk of its own, that one may be full."""
        self.output = output
        self.random = moments
        self.kinds: dict[str, Callable[[Ranks], None]] = {
            "SIGKILL to one rank": self.kill_one,
            "SIGKILL to all ranks": self.kill_all,
            "SIGTERM to all ranks": self.terminate,
            "SIGUSR1 to one rank": self.request_of_one,
            "one rank frozen": self.freeze_one,
            "newest checkpoint truncated": self.truncate_newest,
            "newest checkpoint with a flipped bit": self.flip_newest,
        }
        if output.parent.is_mount():
            self.kinds["disk full"] = self.fill_disk

    def kill_one(self, ranks: Ranks) -> None:
        victim = self.random.randrange(RANKS)
        ranks.send(signal.SIGKILL, [victim])
        codes = ranks.join()
        assert codes[1 - victim] == RANK_LOST, codes

    def kill_all(self, ranks: Ranks) -> None:
        ranks.send(signal.SIGKILL, list(range(RANKS)))
        ranks.join()

    def terminate(self, ranks: Ranks) -> None:
        ranks.send(signal.SIGTERM, self.random.sample(range(RANKS), RANKS))
        codes = ranks.join()
        assert codes == [0] * RANKS, codes

    def request_of_one(self, ranks: Ranks) -> None:
        ranks.send(signal.SIGUSR1, [self.random.randrange(RANKS)])
        codes = ranks.join()
        assert codes == [0] * RANKS, codes

    def freeze_one(self, ranks: Ranks) -> None:
        victim = self.random.randrange(RANKS)
        ranks.send(signal.SIGSTOP, [victim])
        ranks.processes[1 - victim].join(PATIENCE_SECONDS)
        ranks.send(signal.SIGKILL, [victim])
        codes = ranks.join()
        assert codes[1 - victim] == RANK_LOST, codes

    def truncate_newest(self, ranks: Ranks) -> None:
        def truncate(path: Path) -> None:
            with path.open("r+b") as file:
                file.truncate(self.random.randrange(path.stat().st_size))

        self.damage(ranks, truncate)

    def flip_newest(self, ranks: Ranks) -> None:
        def flip(path: Path) -> None:
            content = bytearray(path.read_bytes())
            content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
            path.write_bytes(content)

        self.damage(ranks, flip)

    def damage(self, ranks: Ranks, change: Callable[[Path], None]) -> None:
        """Of several checkpoints: with the only one damaged, a run rightly refuses to begin anew."""
        self.kill_all(ranks)
        kept = checkpoints(self.output / "checkpoints")
        if len(kept) > 1:
            change(self.random.choice(sorted(path for path in kept[0].iterdir() if path.stat().st_size)))

    def fill_disk(self, ranks: Ranks) -> None:
        """The disk is full for a while, sometimes to the end of the start."""
        ballast = self.output.parent / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                pass
        time.sleep(self.random.random())
        if self.random.random() < 0.5:
            ranks.send(signal.SIGKILL, list(range(RANKS)))
            ranks.join()
        ballast.unlink()
        self.terminate(ranks) if ranks.alive() else None


@contextmanager
def small_disk(folder: Path, size: str = "2m") -> Iterator[bool]:
    """A tmpfs at `folder` while it lasts, where this user may mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    made = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def run_rank(rank: int, port: int, run_file: str, log: str) -> None:
    """One rank, in a process of its own."""
    from lm.run_file import load_run_file
    from lm.train.loop import train

    output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(output, stream)
    faulthandler.dump_traceback_later(0.9 * PATIENCE_SECONDS, exit=True)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        train(load_run_file(Path(run_file)))
    except UserError as error:
        sys.exit(str(error))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
