"""Folders that are either whole or not there, for any number of processes at once.

A folder is built under a temporary name, listed in a manifest with sizes and checksums, synced to disk, and then given
its name by one rename. One process builds while the others wait for its lock, which the system releases when a
process dies. A folder that no longer agrees with its manifest is built again.

Checksums are read once, by whoever builds the folder or first finds its files changed on disk; then sizes and times
of change are noted in the folder, and later openings only compare those.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lm.errors import UserError

_MANIFEST = "manifest.json"
_VERIFIED = "verified.json"
_SYNCS = 8
_UNWRITABLE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOSPC, errno.EDQUOT),
    *(errno.ENOTDIR, errno.EEXIST),
}
"""What an error without the name of a file says of the disk that is written to."""
_log = logging.getLogger(__name__)


def cached_folder(cache_dir: Path, name: str, build: Callable[[Path], None], key: str = "data.cache_dir") -> Path:
    """`cache_dir/name`, filled by `build(folder)` unless it is there and undamaged.

    key: the option that names `cache_dir`.

    Raises:
        UserError: the cache cannot be written, or its disk has no locks.
    """
    folder = cache_dir / name
    if damage(folder) is None:
        return folder
    with writable(cache_dir, key), _locked(cache_dir, name, key):
        problem = damage(folder)
        if problem is None:
            return folder
        # Nobody else holds the lock, so whatever still has a temporary name was left by a process that died.
        for leftover in cache_dir.glob(f".{name}.*"):
            shutil.rmtree(leftover)
        temporary = cache_dir / f".{name}.new"
        temporary.mkdir()
        try:
            build(temporary)
            _write_manifest(temporary)
            _note_verified(temporary)
        except BaseException:
            shutil.rmtree(temporary)
            raise
        if folder.exists():
            _log.warning("The cache '%s' is damaged (%s) and was built again.", folder, problem)
            folder.rename(cache_dir / f".{name}.damaged")
        temporary.rename(folder)
        _sync(cache_dir)
        shutil.rmtree(cache_dir / f".{name}.damaged", ignore_errors=True)
    return folder


def damage(folder: Path) -> str | None:
    """What is wrong with a cached folder, in words; None when every file has the size and checksum it was given.

    Files that have not changed on disk since they were verified are not read.
    """
    try:
        files = json.loads((folder / _MANIFEST).read_text())["files"]
        for name, expected in files.items():
            size = inside(folder, name).stat().st_size
            if size != expected["size"]:
                return f"{name} has {size} bytes instead of {expected['size']}"
        if _verified(folder) == _on_disk(folder, [*files, _MANIFEST]):
            return None
        for name, expected in files.items():
            if _checksum(folder / name) != expected["sha256"]:
                return f"{name} has another checksum"
        with contextlib.suppress(OSError):  # a folder that only others may write is read again each time
            _note_verified(folder)
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except OSError as error:
        return f"{Path(error.filename).name} cannot be read: {error.strerror}"
    except OutsideError as error:
        return str(error)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} is not readable"
    return None


class OutsideError(ValueError):
    """A manifest names a file that is not below its folder."""


def inside(folder: Path, name: str) -> Path:
    """The path of a file that a manifest names. Raises OutsideError for one that lies elsewhere, by `..` or a link."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise OutsideError(f"{_MANIFEST} names {name}, which is outside the folder")
    return path


def _verified(folder: Path) -> object:
    """What `_note_verified` noted; None where nothing readable is."""
    try:
        return json.loads((folder / _VERIFIED).read_text())
    except (OSError, ValueError):
        return None


def _note_verified(folder: Path) -> None:
    files = json.loads((folder / _MANIFEST).read_text())["files"]
    # One rename, for processes that verify at once.
    own = folder / f".{_VERIFIED}.{os.getpid()}"
    own.write_text(json.dumps(_on_disk(folder, [*files, _MANIFEST])))
    own.replace(folder / _VERIFIED)


def _on_disk(folder: Path, names: list[str]) -> dict[str, list[int]]:
    """Size in bytes and time of change in nanoseconds."""
    return {name: [(status := (folder / name).stat()).st_size, status.st_mtime_ns] for name in names}


def contents(folder: Path, names: Collection[str]) -> dict[str, str]:
    """The checksum of each file of a cached folder that has one of these names, from its manifest."""
    files = json.loads((folder / _MANIFEST).read_text())["files"]
    return {name: file["sha256"] for name, file in files.items() if name.rpartition("/")[2] in names}


def _write_manifest(folder: Path) -> None:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": _checksum(path)} for path in paths
    }
    (folder / _MANIFEST).write_text(json.dumps({"files": files}, indent=1))
    # At once, so that the file system writes them down together instead of one by one.
    with ThreadPoolExecutor(_SYNCS) as pool:
        list(pool.map(_sync, [*paths, folder / _MANIFEST, *filter(Path.is_dir, folder.rglob("*")), folder]))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(cache_dir: Path, name: str, key: str) -> Iterator[None]:
    with (cache_dir / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise without_locks(cache_dir, key, error) from None
        yield


def without_locks(folder: Path, key: str, error: OSError) -> UserError:
    """What to say where the disk of a folder, which the option `key` names, has no locks for its files."""
    return UserError(
        f"{key}: the disk of {folder} does not lock files: {error.strerror}. Name a folder on another disk, or have "
        "this one mounted with locks (Lustre: -o flock; NFS: with lockd)."
    )


@contextlib.contextmanager
def writable(cache_dir: Path, key: str = "data.cache_dir") -> Iterator[None]:
    """Makes the folder of a cache, which the option `key` names, for what is written in it.

    Raises:
        NotWritableError: it is another user's, its disk is full, no folder can be made there (in /proc), or the like.
    """
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(cache_dir, key, error) from error
    try:
        yield
    except OSError as error:
        if error.errno not in _UNWRITABLE and not _is_below(error.filename, cache_dir):
            raise
        raise _not_writable(cache_dir, key, error) from error


def _not_writable(cache_dir: Path, key: str, error: OSError) -> NotWritableError:
    return NotWritableError(f"{key}: '{cache_dir}' cannot be written: {error.strerror}. Name a folder that can.")


def _is_below(name: object, folder: Path) -> bool:
    """Whether an error's file, if it names one, is of a folder: what is read from elsewhere has errors of its own."""
    return isinstance(name, str) and Path(name).is_relative_to(folder)


class NotWritableError(UserError):
    """A cache of which only what is there can be used."""
