"""Checkpoint folders: complete or not there at all, and checked before they are trusted.

A checkpoint is written into `step-000120.tmp`. When every file is on the disk, `manifest.json` lists them with sizes
and checksums, and one rename makes the folder `step-000120`. The newest folder whose manifest holds is the current
checkpoint, so there is no pointer that could disagree with the files.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from lm.data.cache import OutsideError, inside
from lm.errors import UserError
from lm.train.tensor_file import FileEntry, read_entry, sync_folder, write_text

MANIFEST = "manifest.json"
FORMAT = 1
_NAME = re.compile(r"step-(\d+)")
_WRITING = ".tmp"
_DAMAGED = ".damaged"


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint of a step lies."""
    return root / f"step-{step:06d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint folder."""
    match = _NAME.fullmatch(folder.name)
    assert match, folder
    return int(match[1])


def checkpoints(root: Path) -> list[Path]:
    """The finished checkpoint folders, newest first, good and damaged alike."""
    found = [path for path in root.glob("step-*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def begin(root: Path, step: int) -> Path:
    """An empty folder to write the checkpoint of `step` into. Raises OSError."""
    folder = folder_of(root, step).with_suffix(_WRITING)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def commit(folder: Path, files: Mapping[str, FileEntry]) -> Path:
    """Makes a written folder a checkpoint and returns its new path. Raises OSError."""
    manifest = {"format": FORMAT, "files": {name: asdict(entry) for name, entry in sorted(files.items())}}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
    sync_folder(folder)
    final = folder.with_suffix("")
    if final.exists():  # repeated after a fall-back to an older one
        shutil.rmtree(final)
    folder.rename(final)
    sync_folder(final.parent)
    return final


def discard(folder: Path) -> None:
    """Removes a folder that could not be finished."""
    shutil.rmtree(folder, ignore_errors=True)


def files_of(folder: Path) -> dict[str, FileEntry]:
    """What the manifest lists. Raises ValueError, with the reason, where it is not one.

    Raises UserError where it is another version's, or the disk does not give it.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        found = manifest["format"]
        if found == FORMAT:
            for name in manifest["files"]:
                inside(folder, name)
            return {name: FileEntry(**entry) for name, entry in manifest["files"].items()}
    except OutsideError:
        raise
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST} is missing") from None
    except OSError as error:
        raise _unread(folder / MANIFEST, error) from None
    except (KeyError, TypeError, AttributeError, ValueError):
        raise ValueError(f"{MANIFEST} cannot be read") from None
    raise UserError(
        f"{folder} is a checkpoint of format {found}, and this version of braid reads format {FORMAT}. "
        "Go on with the version that wrote it, or choose another train.output_dir."
    )


def _unread(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be read: {error.strerror}. Nothing was changed: start again when the disk gives it."
    )


def damage(folder: Path, share: int = 0, shares: int = 1, pulse: Callable[[], None] = lambda: None) -> str | None:
    """What is wrong with a checkpoint, or None. Of the files every `shares`-th is checked, starting at `share`.

    pulse: called again and again while files are read.

    Raises UserError where that cannot be known: for another version's checkpoint, and for one that cannot be read.
    """
    try:
        files = files_of(folder)
    except ValueError as error:
        return str(error)
    for name, entry in list(files.items())[share::shares]:
        try:
            found = read_entry(folder / name, pulse)
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            raise _unread(folder / name, error) from None
        if found.size != entry.size:
            return f"{name} has {found.size} bytes instead of {entry.size}"
        if found != entry:
            return f"{name} does not match its checksum"
    return None


def set_aside(folder: Path) -> Path:
    """Takes a damaged checkpoint out of the way and returns where it is: there until a later one replaces it."""
    aside = folder.with_suffix(_DAMAGED)
    shutil.rmtree(aside, ignore_errors=True)
    return folder.rename(aside)


def tidy(root: Path, dropped: Iterable[Path]) -> None:
    """Removes the checkpoints `dropped`, and what interrupted ones left behind.

    To be called when one was written: those set aside that it makes up for, at its step or before, go too.
    """
    finished = checkpoints(root)
    reached = step_of(finished[0]) if finished else -1
    damaged = [path for path in root.glob(f"step-*{_DAMAGED}") if step_of(path.with_suffix("")) <= reached]
    for folder in [*dropped, *damaged, *root.glob(f"step-*{_WRITING}")]:
        remove(folder)


def remove(folder: Path) -> None:
    """Removes a checkpoint; one that is killed meanwhile leaves no checkpoint that looks whole."""
    if _NAME.fullmatch(folder.name):
        folder = folder.rename(folder.with_suffix(_WRITING))
    shutil.rmtree(folder, ignore_errors=True)
