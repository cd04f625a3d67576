"""State that lies in files of a local disk (DeepSpeed's ZeRO-Infinity): what it needs, and a folder of its own."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lm.errors import UserError
from lm.train.deepspeed_options import OFFLOADS, DeepSpeedOptions
from lm.train.distributed import World
from lm.train.precision import DTYPES

_PREFIX = f"braid-swap-{os.getuid()}-"
"""Each user's own: others' locks and folders cannot be opened."""


def require_asynchronous_files(settings: DeepSpeedOptions, world: World, say: Callable[[str], None]) -> None:
    """Raises UserError where settings ask for files that DeepSpeed cannot read and write on every rank's machine.

    To be called once DeepSpeed is ready, before data is read. say: told what the first start has to wait for.
    Collective.
    """
    if not settings.on_nvme:
        return
    refused = next((refusal for refusal in world.gather(_refusal(settings)) if refusal is not None), None)
    if refused is not None:
        raise UserError(refused)
    lock = _operator_folder() / "lock"
    if lock.exists():
        say(f"another process builds DeepSpeed's operator for files; if none does, remove {lock}, which is waited for")
    elif not operator_is_built():
        say("DeepSpeed builds its operator for files, at this first start alone: it takes minutes")


def _refusal(settings: DeepSpeedOptions) -> str | None:
    """What is missing on this machine, and what to do."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    for key in settings.on_nvme:
        path = Path(settings.zero[key]["nvme_path"])
        if not (path.is_dir() and os.access(path, os.W_OK)):
            return f"deepspeed.zero_optimization.{key}.nvme_path: {path} is no folder that can be written"
    if AsyncIOBuilder().is_compatible(verbose=False):
        return None
    return (
        f"deepspeed.zero_optimization.{settings.on_nvme[0]}.device: nvme needs libaio with its header and a compiler, "
        "with which DeepSpeed builds its operator at the first start: install them (apt install libaio-dev g++; dnf "
        "install libaio-devel gcc-c++), or say in CFLAGS and LDFLAGS where libaio is; or choose cpu"
    )


def operator_is_built() -> bool:
    """Whether DeepSpeed's operator for files is in the cache, built from the sources of this installation.

    One of another virtual environment is built anew, since its commands name other folders.
    """
    import deepspeed

    folder, sources = _operator_folder(), str(Path(deepspeed.__file__).parent)
    commands = folder / "build.ninja"
    return any(folder.glob("*.so")) and commands.is_file() and sources in commands.read_text()


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
    """A handle that holds the folder; None where another process does, or has just removed it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _remove(folder: Path, handle: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(handle)


def require_exact_parameters(model: nn.Module, precision: str) -> None:
    """Raises UserError where DeepSpeed keeps the parameters of `model` in files of fewer bits than they have.

    It takes bf16 for them on a machine that does not compute in fp16, whatever the precision is (0.19).
    """
    for parameter in model.parameters():
        swapper = getattr(parameter, "nvme_swapper", None)
        if swapper is not None and swapper.dtype != DTYPES[precision]:
            kept = str(swapper.dtype).removeprefix("torch.")
            raise UserError(
                f"deepspeed.zero_optimization.offload_param.device: on this machine DeepSpeed keeps parameters in "
                f"files as {kept}, which train.precision {precision} is not: use cpu, or precision bf16"
            )


def keep_misaligned_gradients(engine: Any) -> None:
    """Keeps in memory what DeepSpeed would read back from its files wrongly, without a word (0.19).

    A gradient is read into its place in a flat buffer, and the system reads into places of whole blocks alone.
    DeepSpeed cuts lengths to blocks, but does not look at where a gradient begins: behind those before it.
    """
    swapper = getattr(engine.optimizer, "optimizer_swapper", None)
    if swapper is None:
        return
    swap_out = swapper.swap_out_gradients

    def swap_out_aligned(parameter: Any, gradient_offsets: Sequence[int], gradient_tensors: Sequence[Tensor]) -> None:
        for offset, tensor in zip(gradient_offsets, gradient_tensors, strict=True):
            if offset % swapper.numel_alignment:
                tensor.swappable = False  # type: ignore[attr-defined]
        swap_out(parameter, gradient_offsets, gradient_tensors)

    swapper.swap_out_gradients = swap_out_aligned
