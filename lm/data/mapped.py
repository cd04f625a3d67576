"""Flat files as arrays in memory that is read from the disk when it is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow


def mapped(path: Path, dtype: str) -> np.ndarray[Any, Any]:
    """A file of little-endian numbers as a read-only array, 1-D, which outlives the file's deletion.

    The file is not held open, as numpy's memmap would hold it: a source may lie in thousands of files, and on many
    systems a process may open 1,024.
    """
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        return np.zeros(0, dtype=dtype)
    with pyarrow.memory_map(str(path)) as file:
        return np.frombuffer(file.read_buffer(), dtype=dtype)
