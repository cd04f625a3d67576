"""The C++ kernels as a shared library: built by `braid build-kernels` and by nothing else, found again by their source.

The library is for the processor it was built on, and stands in a cache folder under a name made of its sources, the
flags and the processor: after an update, or on another kind of machine, it counts as not built.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch  # noqa: F401 - the library's OpenMP is the one that torch has loaded

SOURCES = ("attention_forward.cpp", "attention_backward.cpp", "scan.cpp", "chunk_states.cpp")
HEADERS = ("tiles.h", "attention.h")
# No -ffast-math: rows that see nothing are told by infinities. The OpenMP library is torch's own, which is loaded.
FLAGS = (
    *("-O3", "-march=native", "-std=gnu++17", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-fPIC", "-shared"),
)
FOLDER = "BRAID_KERNELS"
_HERE = Path(__file__).parent


class BuildError(Exception):
    """The kernels could not be built; the message says why, with the compiler's words."""


def compiler() -> str | None:
    """The C++ compiler: of the environment variable CXX, or g++ or clang++."""
    return next(
        (found for name in (os.environ.get("CXX"), "g++", "clang++") if name and (found := shutil.which(name))), None
    )


def path() -> Path:
    """Where the library of these sources stands for this processor, built or not.

    In the folder that BRAID_KERNELS names, or in the user's cache. Raises RuntimeError where there is neither.
    """
    return _path(os.environ.get(FOLDER), os.environ.get("XDG_CACHE_HOME"), _identity())


@cache  # asked for at every call of a kernel
def _path(folder: str | None, cache_home: str | None, identity: str) -> Path:
    if not folder:  # a user without a home can still name a folder
        folder = os.fspath(Path(cache_home or Path.home() / ".cache") / "braid" / "kernels")
    return Path(folder) / f"{identity}.so"


@cache
def _identity() -> str:
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for name in (*SOURCES, *HEADERS):
        digest.update((_HERE / name).read_bytes())
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
        kept = [line for line in processor.splitlines() if line.startswith(("model name", "flags", "Features"))]
    except OSError:
        kept = list(os.uname())
    digest.update("\n".join(kept).encode())
    return digest.hexdigest()[:20]


def build() -> Path:
    """Compiles the library unless it is there and can be loaded, and returns its path. Raises BuildError."""
    try:
        target = path()
    except RuntimeError as error:
        raise BuildError(f"{error} Name a folder in {FOLDER}") from None
    if target.exists() and _fault(target) is None:
        return target
    program = compiler()
    if program is None:
        raise BuildError("there is no C++ compiler: neither g++ nor clang++ is on the PATH, and CXX names none")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        made = Path(folder) / target.name
        command = [program, *FLAGS, *(os.fspath(_HERE / name) for name in SOURCES), "-o", os.fspath(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise BuildError(f"{' '.join(command)} failed:\n{done.stderr.strip()}")
        if fault := _fault(made):
            raise BuildError(f"{' '.join(command)} made what cannot be loaded: {fault}")
        os.replace(made, target)  # whoever builds at the same time writes the same
    return target


def unavailable() -> str | None:
    """Why the kernels cannot run here, None where they can."""
    try:
        found = path()
    except RuntimeError:
        return f"it is not built, there is no home folder: name one in {FOLDER}, and run `braid build-kernels`"
    if not found.exists():
        return "it is not built for this version and processor: run `braid build-kernels`"
    fault = _fault(found)
    return None if fault is None else f"it cannot be loaded: {fault}: `braid build-kernels` builds it anew"


def _fault(library: Path) -> str | None:
    """Why the library cannot be loaded, None where it can."""
    try:
        load(library)
    except OSError as error:
        return str(error) if os.fspath(library) in str(error) else f"{library}: {error}"
    return None


@cache
def load(library: Path) -> ctypes.CDLL:
    """The library. Raises OSError where the file is none."""
    return ctypes.CDLL(os.fspath(library))


def function(name: str) -> Any:
    """A function of the built library that takes a pointer to its call and returns nothing."""
    found = getattr(load(path()), name)
    found.argtypes, found.restype = [ctypes.c_void_p], None
    return found
