"""From a name to a model under evaluation: run folders, exports, Hugging Face folders and ids, GGUF files, adapters."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import GENERATION_CONFIG_NAME

from eval.model import Model
from lm.errors import UserError, first_line
from lm.export import model_of_run, read_run
from lm.extend import base
from lm.extend.options import BaseOptions
from lm.hf.loading import ADAPTER_FILE, forget_gguf, from_pretrained, loading, whole_weights
from lm.train.file_names import RUN_FILE

ADAPTER_WEIGHTS = "adapter_model.safetensors"


def open_model(
    path: str | Path,
    *,
    adapter: str | Path | None = None,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
) -> Model:
    """The model at `path`, on the GPU where there is one.

    path: the folder of a Braid run (its final weights, or its newest good checkpoint's; adapters merged), a Braid
    export or any other Hugging Face folder, a .gguf file, a Hub id (at `revision`), or a PEFT adapter whose base is
    where the adapter says. adapter: a PEFT adapter to be merged into the model at `path`; a config.json beside it is
    the merged model's. dtype: left out, fp32 on a CPU, and on a GPU what the weights were saved in.

    Raises:
        UserError: there is no such model, it is no causal language model, or its tokenizer or base is missing.
    """
    place = Path(path).expanduser()
    is_run, is_adapter = (place / RUN_FILE).is_file(), (place / ADAPTER_FILE).is_file()
    if adapter is not None and (is_run or is_adapter):
        raise UserError(f"{path} is a run or an adapter, not the base of {adapter}: name the base")
    if revision is not None and place.exists():
        raise UserError(f"{path} is on this machine; a revision is of a model on the Hub")
    if is_run:
        model, tokenizer = model_of_run(read_run(place))
        model.to(dtype or torch.float32)
    elif is_adapter:
        options = _base_of(place)
        try:
            model, tokenizer = _adapted(options, place, dtype)
        except UserError as error:
            raise UserError(f"{path}, an adapter on {options.path}: {error}") from None
    elif adapter is not None:
        model, tokenizer = _adapted(BaseOptions(path=str(path), revision=revision), Path(adapter).expanduser(), dtype)
    else:
        options = BaseOptions(path=str(path), revision=revision)
        model, tokenizer = _load(options, None, dtype), _tokenizer(options)
    forget_gguf()
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise UserError(f"{path}: its tokenizer has {len(tokenizer)} tokens, but the model embeds only {rows}")
    return Model(model.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer, model_name(path, adapter))


def model_name(path: str | Path, adapter: str | Path | None = None) -> str:
    """What the model that `open_model` opens is called: its folder's name, or its Hub id; `base+adapter` with one."""
    place = Path(path).expanduser()
    name = place.resolve().name if place.exists() else str(path)
    return name if adapter is None else f"{name}+{Path(adapter).expanduser().resolve().name}"


def _base_of(adapter: Path) -> BaseOptions:
    """Where the adapter says that its base is."""
    named = str(_settings(adapter).get("base_model_name_or_path") or "")
    local = Path(named).expanduser()
    if not named or (not (local / "config.json").is_file() and not base.HUB_ID.fullmatch(named)):
        where = f"it names '{named}', which holds no model" if named else "it names none"
        raise UserError(
            f"{adapter} is an adapter without its base ({where}): go to where that name leads to it, or "
            "export the whole model; braid eval also takes the base, and this as its --adapter"
        )
    return BaseOptions(path=named)


def _settings(adapter: Path) -> dict[str, Any]:
    file = adapter / ADAPTER_FILE
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from None
    if not isinstance(settings, dict):
        raise UserError(f"{file} does not describe an adapter")
    return settings


def _load(options: BaseOptions, config_folder: Path | None, dtype: torch.dtype | None) -> PreTrainedModel:
    """The model; with the configuration in `config_folder` in place of its own, where one is given."""
    with _mistakes(options.path):
        config = base.read_config(options)
        saved = config.dtype if torch.cuda.is_available() else None
        if config_folder is not None:
            config = from_pretrained(AutoConfig, config_folder)
        return base.load(options, config, dtype or saved or torch.float32)


def _adapted(
    options: BaseOptions, adapter: Path, dtype: torch.dtype | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base with an adapter merged into it."""
    if not (adapter / ADAPTER_FILE).is_file():
        raise UserError(f"{adapter} is not an adapter's folder: it has no {ADAPTER_FILE}")
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{adapter} has no {ADAPTER_WEIGHTS}: weights in other forms, pickled ones say, are not read")
    if "peft_type" not in _settings(adapter):
        raise UserError(f"{adapter}: its {ADAPTER_FILE} names no peft_type, so it is no adapter of PEFT's")
    model = _load(options, adapter if (adapter / "config.json").is_file() else None, dtype)
    with loading(), _mistakes(f"{adapter} on {options.path}"), whole_weights(adapter), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # peft's own calls of transformers
        warnings.filterwarnings("error", message="Found missing adapter keys")
        merged: PreTrainedModel = PeftModel.from_pretrained(model, adapter).merge_and_unload()
        if (adapter / GENERATION_CONFIG_NAME).is_file():
            merged.generation_config = GenerationConfig.from_pretrained(str(adapter))
    own = (adapter / "tokenizer_config.json").is_file()
    return merged, _tokenizer(BaseOptions(path=str(adapter)) if own else options)


def _tokenizer(options: BaseOptions) -> PreTrainedTokenizerBase:
    try:
        return from_pretrained(AutoTokenizer, **base.place(options))
    except (OSError, ValueError) as error:
        raise UserError(f"{options.path} brings no tokenizer that can be read: {first_line(error)}") from None


@contextmanager
def _mistakes(what: str) -> Iterator[None]:
    """Says the mistakes of what is loaded by its own name, not by the run file's key for it."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).removeprefix("base.path: ")) from None
    except (OSError, ValueError, RuntimeError, UserWarning) as error:
        raise UserError(f"{what} cannot be loaded: {first_line(error)}") from None
