"""Safetensors files, written as a stream that is hashed and forced to the disk on the way."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from lm.train.handover import ended

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8", torch.int64: "I64"}
_BLOCK = 1 << 24
_PIECE = 1 << 22


@dataclass(frozen=True)
class FileEntry:
    """What a manifest says of a file: its size in bytes and its SHA-256."""

    size: int
    sha256: str


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> FileEntry:
    """Writes a safetensors file and returns what was written. Raises OSError."""
    return ended(writing_tensors(path, tensors, metadata))


def writing_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> Generator[None, None, FileEntry]:
    """The same in pieces of a few milliseconds, so that whoever runs it may stop, and another go on.

    Tensors that do not lie in host memory are copied there one at a time.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in chain(map(memoryview, (len(text).to_bytes(8, "little"), text)), map(_bytes, tensors.values())):
            for begin in range(0, len(part), _PIECE):
                piece = part[begin : begin + _PIECE]
                file.write(piece)
                digest.update(piece)
                yield
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(8 + len(text) + end, digest.hexdigest())


def write_text(path: Path, text: str) -> FileEntry:
    """Writes a text file to the disk. Raises OSError."""
    data = text.encode()
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return FileEntry(len(data), hashlib.sha256(data).hexdigest())


def replace_text(path: Path, text: str) -> None:
    """Writes a text file in one step: whatever happens, a reader sees the old one or the new one. Raises OSError."""
    temporary = path.with_name(path.name + ".tmp")
    write_text(temporary, text)
    temporary.replace(path)
    sync_folder(path.parent)


def read_entry(path: Path, pulse: Callable[[], None] = lambda: None) -> FileEntry:
    """Size and SHA-256 of a file as it is now. pulse: called again and again. Raises OSError."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
            pulse()
    return FileEntry(size, digest.hexdigest())


def sync_folder(path: Path) -> None:
    """Forces a folder's list of names to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _bytes(tensor: Tensor) -> memoryview:
    data: memoryview = tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data
    return data
