"""State that lies in files of a local disk (DeepSpeed's ZeRO-Infinity): what it needs, and a folder of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm.errors import UserError
from lm.train.deepspeed_options import OFFLOADS, DeepSpeedOptions

_PREFIX = "braid-swap-"


def require_asynchronous_files(settings: DeepSpeedOptions, say: Callable[[str], None]) -> None:
    """Raises UserError where settings ask for files that DeepSpeed cannot read and write on this machine.

    To be called once DeepSpeed is ready, before data is read. say: told what the first start has to wait for.
    """
    wanted = settings.on_nvme
    if not wanted:
        return
    from deepspeed.ops.op_builder import AsyncIOBuilder

    for key in wanted:
        path = Path(settings.zero[key]["nvme_path"])
        if not (path.is_dir() and os.access(path, os.W_OK)):
            raise UserError(f"deepspeed.zero_optimization.{key}.nvme_path: {path} is no folder that can be written")
    if not AsyncIOBuilder().is_compatible(verbose=False):
        raise UserError(
            f"deepspeed.zero_optimization.{wanted[0]}.device: nvme needs libaio with its header and a C compiler, with "
            "which DeepSpeed builds its operator at the first start: install them (apt install libaio-dev gcc; dnf "
            "install libaio-devel gcc), or say in CFLAGS and LDFLAGS where libaio is; or choose cpu"
        )
    lock = _operator_folder() / "lock"
    if lock.exists():
        say(f"another process builds DeepSpeed's operator for files; if none does, remove {lock}, which is waited for")
    elif not operator_is_built():
        say("DeepSpeed builds its operator for files, at this first start alone: it takes minutes")


def operator_is_built() -> bool:
    """Whether DeepSpeed's operator for files is in the cache of this machine's PyTorch."""
    return any(_operator_folder().glob("*.so"))


def _operator_folder() -> Path:
    from torch.utils import cpp_extension

    return Path(cpp_extension._get_build_directory("async_io", verbose=False))


def in_own_folders(zero: dict[str, Any], owner: object) -> dict[str, Any]:
    """The settings with, in place of each `nvme_path`, a new folder in it, which is removed when `owner` is gone.

    DeepSpeed names files by rank alone, so two runs, or a run and its replay, would write over each other's state.
    Raises OSError.
    """
    result = dict(zero)
    for key in OFFLOADS:
        if zero.get(key, {}).get("device") == "nvme":
            result[key] = zero[key] | {"nvme_path": str(own_folder(Path(zero[key]["nvme_path"]), owner))}
    return result


def own_folder(parent: Path, owner: object) -> Path:
    """A new folder that nobody else uses, gone with `owner` or at the end of the process.

    What processes that were killed have left there is removed: they hold the locks of their folders no more.
    """
    with (parent / f"{_PREFIX}lock").open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)  # no folder is looked at between its making and its locking
        for left in parent.glob(f"{_PREFIX}*/"):
            handle = _locked(left)
            if handle is not None:
                shutil.rmtree(left, ignore_errors=True)
                os.close(handle)
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
        handle = _locked(folder)
    assert handle is not None
    weakref.finalize(owner, _remove, folder, handle)
    return folder


def _locked(folder: Path) -> int | None:
    """A handle that holds the folder; None where another process does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _remove(folder: Path, handle: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(handle)
