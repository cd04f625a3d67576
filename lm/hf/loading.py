"""How transformers is asked for a model: without bars of its own, and with a GGUF file parsed once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import modeling_gguf_pytorch_utils as gguf_loading
from transformers.utils import logging

from lm.errors import UserError


@contextmanager
def loading() -> Iterator[None]:
    """Around transformers' reading and writing of models: it draws no bars, which would tear the program's own.

    Downloads keep theirs. A GGUF file, which transformers parses for the configuration, the tokenizer and the weights
    each, is parsed once (`parsed_gguf`).
    """
    hook = logging.set_tqdm_hook(lambda factory, args, kwargs: logging.EmptyTqdm(*args, **kwargs))
    try:
        with _parsed_gguf_inside():
            yield
    finally:
        logging.set_tqdm_hook(hook)


def parsed_gguf(path: str | Path) -> Any:
    """The `gguf.GGUFReader` of a file; the last one is kept, as long as the file stays what it is.

    Parsing takes seconds, since a vocabulary's entries are read one by one. Raises UserError for another kind of file,
    or where the package gguf is missing.
    """
    if find_spec("gguf") is None:
        raise UserError(f"{path}: reading GGUF files needs the package gguf: pip install gguf")
    state = os.stat(path)
    return _parsed(os.path.abspath(path), state.st_mtime_ns, state.st_size)


def forget_gguf() -> None:
    """Frees what `parsed_gguf` keeps."""
    _parsed.cache_clear()


@lru_cache(maxsize=1)
def _parsed(path: str, modified: int, size: int) -> Any:
    from gguf.gguf_reader import GGUFReader

    try:
        return GGUFReader(path)
    except (ValueError, IndexError, KeyError) as error:
        raise UserError(f"{path} is not a GGUF file that can be read: {str(error).strip()}") from None


@contextmanager
def _parsed_gguf_inside() -> Iterator[None]:
    """Makes transformers take `parsed_gguf` where it parses a file, and draw no bar over its tensors."""
    if find_spec("gguf") is None:
        yield
        return
    import gguf

    before = gguf.GGUFReader, gguf_loading.tqdm
    gguf.GGUFReader, gguf_loading.tqdm = parsed_gguf, logging.EmptyTqdm
    try:
        yield
    finally:
        gguf.GGUFReader, gguf_loading.tqdm = before
