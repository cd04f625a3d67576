"""How transformers is asked for a model: nothing is unpickled or run, no bars are drawn, a GGUF file is parsed once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from traceback import walk_tb
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import modeling_gguf_pytorch_utils as gguf_loading
from transformers.utils import logging

from lm.errors import UserError, did_you_mean, first_line
from lm.hf.hub import is_cached, require_connection

ADAPTER_FILE = "adapter_config.json"
"""What makes a folder one of a PEFT adapter."""
ALMOST = 0.8
"""How alike a name and that of a folder are where one is taken for a slip in writing the other."""
_LFS_POINTER = b"version https://git-lfs"


def from_pretrained(kind: Any, place: str | Path, **settings: Any) -> Any:
    """`kind.from_pretrained(place)` for an Auto class, which unpickles nothing and runs no code that a folder brings.

    transformers alone would unpickle weights where there are no others, and would ask on a terminal whether to run
    what the folder brings.

    Raises:
        UserError: it is nowhere, its weights are pickled or damaged, its code would have to be run, its index
            names files outside the folder, or its configuration has values that no model can be built of.
        OSError, ValueError: as transformers does; the former where there is no connection to the Hub, the latter for a
            tokenizer.json that cannot be used, too.
    """
    if absent := absent_here(place):
        raise UserError(absent)
    revision = settings.get("revision")
    if not Path(place).exists() and not is_cached(str(place), revision):
        require_connection(str(place), revision)
    extra = {"use_safetensors": True} if kind is AutoModelForCausalLM and "gguf_file" not in settings else {}
    if extra:
        _require_plain_weights(Path(place))
    try:
        with loading(), whole_weights(place):
            return kind.from_pretrained(place, trust_remote_code=False, **extra, **settings)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UserError(f"{place}: the model is Python code that comes with it, which braid does not run") from None
    except StrictDataclassError as error:
        raise UserError(f"{place}: {' '.join(str(error).split())}") from None
    except (KeyError, TypeError) as error:  # what transformers raises for names and types it does not check
        if not _raised_by_transformers(error):
            raise
        raise UserError(f"{place}: its configuration cannot be used: {error!r}") from None
    except Exception as error:
        if type(error) is not Exception:
            raise
        raise ValueError(str(error)) from error  # tokenizers raises nothing narrower


def load_model(place: str | Path, nothing_left: bool = False, **settings: Any) -> PreTrainedModel:
    """The causal model of a folder or a Hub id, none of whose weights are drawn because they are not there.

    nothing_left: refuse weights that the model has no place for, but for those that transformers leaves out by design.
    Raises as `from_pretrained` does, and ValueError where weights are missing, too many or of other shapes.
    """
    settings |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # to name them here
    model, info = from_pretrained(AutoModelForCausalLM, place, **settings)
    if info["mismatched_keys"]:
        name, given, wanted = min(info["mismatched_keys"])
        raise ValueError(f"{name} is {list(given)}, by the configuration {list(wanted)}")
    if info["missing_keys"]:
        raise ValueError(f"it lacks the weights {', '.join(sorted(info['missing_keys']))}")
    if nothing_left and info["unexpected_keys"]:
        left = sorted(info["unexpected_keys"])
        more = f" and {len(left) - 3} more" if len(left) > 3 else ""
        raise ValueError(f"its configuration has no place for the weights {', '.join(left[:3])}{more}")
    result: PreTrainedModel = model
    return result


def _raised_by_transformers(error: Exception) -> bool:
    raised = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)][-1]
    return str(raised).split(".")[0] in ("transformers", "huggingface_hub")


def absent_here(place: str | Path) -> str:
    """What to say of a path that leads nowhere, so that nobody looks for it on the Hub; of all other names nothing.

    A bare name is a path where a folder beside has almost that name, unless the Hub's model of the name is cached: the
    Hub has few of them, and those by their owners' names, too.
    """
    path = Path(place)
    beside = [str(other) for other in path.parent.iterdir()] if path.parent.is_dir() else []
    a_hub_id = len(path.parts) == 1 or (len(path.parts) == 2 and not path.is_absolute() and not path.parent.is_dir())
    if path.exists():
        return ""
    if a_hub_id and not str(place).startswith((".", "~")):
        folders = [name for name in beside if Path(name).is_dir()] if len(path.parts) == 1 else []
        nearest = did_you_mean(str(path), folders, ALMOST)
        if not nearest or is_cached(str(place)):
            return ""
        return f"{place}: there is no such folder here.{nearest} For a model of the Hub write OWNER/{place}."
    return f"{place}: there is no such file or folder.{did_you_mean(str(path), beside)}"


def _require_plain_weights(folder: Path) -> None:
    for index in folder.glob("*.index.json"):
        try:
            names = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} cannot be read as an index of weights: {error!r}") from None
        for name in sorted(names):
            if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                raise UserError(f"{index} names a file outside its folder, '{name}': it is not read")
    pickled = sorted(folder.glob("*.bin"))
    if pickled and not any(folder.glob("*.safetensors")):
        raise UserError(
            f"{folder}: the weights are pickled ({pickled[0].name}), and reading those can run any code. Where you "
            "trust them, write them anew: AutoModelForCausalLM.from_pretrained(...).save_pretrained(...) does it"
        )


@contextmanager
def whole_weights(place: str | Path) -> Iterator[None]:
    """Around the reading of .safetensors files. Raises UserError for a damaged one, which it names where it is here."""
    try:
        yield
    except SafetensorError as error:
        damaged = next(filter(_is_damaged, sorted(Path(place).glob("*.safetensors"))), None)
        if damaged is not None and _begins_with(damaged, _LFS_POINTER):
            raise UserError(
                f"{damaged} is what git leaves in the place of weights where git-lfs is missing: `git lfs pull` in "
                "that folder fetches them"
            ) from None
        what = f"{place}: a file of its weights is" if damaged is None else f"{damaged} is"
        raise UserError(f"{what} damaged, or was copied in part: {first_line(error)}") from None


def _begins_with(file: Path, content: bytes) -> bool:
    with file.open("rb") as opened:
        return opened.read(len(content)) == content


def _is_damaged(file: Path) -> bool:
    try:
        with safe_open(file, "pt"):
            return False
    except SafetensorError:
        return True


@contextmanager
def loading() -> Iterator[None]:
    """Around transformers' reading and writing of models: it draws no bars, which would tear the program's own.

    Downloads keep theirs. A GGUF file, which transformers parses for the configuration, the tokenizer and the weights
    each, is parsed once (`parsed_gguf`).
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, which saving imports, prints that it guesses
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
