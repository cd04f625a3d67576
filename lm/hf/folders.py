"""Model folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from lm.errors import UserError

_WEIGHTS = ("model*.safetensors*", "adapter_model*.safetensors*")


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder to write into; at the end its files take their places in `folder`, and weights of before are gone.

    Files of other names stay. What fails, or is interrupted, on the way leaves `folder` as it was, or not there.

    Raises:
        UserError: the folder cannot be written.
    """
    # Inside it, so that moving the files is a rename wherever the folder lies.
    is_new, moved = not folder.exists(), list[Path]()
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            inside = TemporaryDirectory(prefix=".new-", dir=folder)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror}. Name another folder") from None
        with inside as name:
            yield Path(name)
            for path in sorted(Path(name).iterdir()):
                target = folder / path.name
                if target.is_dir() and not target.is_symlink():
                    shutil.rmtree(target)
                os.replace(path, target)
                moved.append(target)
        for stale in {path for pattern in _WEIGHTS for path in folder.glob(pattern)} - set(moved):
            stale.unlink()
    except BaseException:
        if is_new:
            for path in moved:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            with suppress(OSError):
                folder.rmdir()
        raise
