"""Model folders that are written whole or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
    # Beside it, so that moving the files is a rename.
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent)
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror}. Name another folder") from None
    with beside as name:
        yield Path(name)
        folder.mkdir(exist_ok=True)
        for pattern in _WEIGHTS:
            for stale in folder.glob(pattern):
                stale.unlink()
        for path in Path(name).iterdir():
            shutil.move(path, folder / path.name)
