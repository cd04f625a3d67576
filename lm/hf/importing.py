"""Turns a Llama-family model into a Braid model: the same function, or as many of its weights as a new pattern fits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from lm.errors import UserError, first_line
from lm.hf.configuration import BraidConfig
from lm.hf.families import describe, reasons, translate
from lm.hf.folders import written_whole
from lm.hf.loading import forget_gguf, from_pretrained, load_model, loading, parsed_gguf
from lm.hf.patterns import Layer, assemble, with_pattern
from lm.model.options import ModelOptions


@dataclass(frozen=True)
class Imported:
    """What was written: the configuration, every layer, and why there is no tokenizer where there is none."""

    config: BraidConfig
    layers: tuple[Layer, ...]
    parameters: int
    dtype: torch.dtype
    no_tokenizer: str | None

    def __str__(self) -> str:
        lines = [f"{self.parameters:,} parameters in {str(self.dtype).removeprefix('torch.')}: {self.config.layers}"]
        if any(layer.new for layer in self.layers):
            lines += [f"layer {index:3d} {layer}" for index, layer in enumerate(self.layers)]
        if self.no_tokenizer is not None:
            lines.append(f"no tokenizer was copied: {self.no_tokenizer}")
        return "\n".join(lines)


def import_model(
    source: str,
    folder: Path,
    layers: str | None = None,
    mixers: Mapping[str, Mapping[str, Any]] | None = None,
    seed: int = 0,
) -> Imported:
    """Writes the Braid model of `source` into `folder`, with its tokenizer.

    source: a Hugging Face folder, a Hub id, or a .gguf file (dequantized to float32).
    layers, mixers: another pattern of as many layers, and its mixers where the original's own, `rat` and `local` do
    not suffice. Weights of equal name and shape are kept, the others drawn with `seed`.
    Raises UserError for what cannot be imported, before any weight is read where the configuration tells.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: a file; name a new folder for the imported model")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; name a new folder for the imported model")
    origin = _Origin.find(source)
    theirs = origin.config()
    if isinstance(theirs, BraidConfig):
        raise UserError(f"{source}: it is a Braid model already; `braid graft` puts other mixers into one")
    try:
        described = describe(theirs)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    if layers is None:
        if mixers:
            raise UserError("--mixers without --layers: give the pattern that uses them")
        try:
            options = ModelOptions(**described)
        except ValidationError as error:
            raise UserError(f"{source}: {reasons(error)}") from None
    else:
        options = with_pattern(described, layers, mixers or {}, "--layers")
    token_ids = {name: getattr(theirs, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = BraidConfig.from_options(options, **token_ids)

    original = origin.model(theirs)
    dtype, generation_config = original.dtype, original.generation_config
    state = dict(translate(theirs, original.state_dict()))
    del original
    model, report = assemble(config, state, dtype, seed)
    model.generation_config = generation_config
    no_tokenizer = None
    with written_whole(folder) as written:
        with loading():
            model.save_pretrained(written)
        try:
            from_pretrained(AutoTokenizer, origin.place, **origin.file).save_pretrained(written)
        except (OSError, ValueError, UserError) as error:
            no_tokenizer = first_line(error)
    forget_gguf()
    return Imported(config, report, model.num_parameters(), dtype, no_tokenizer)


@dataclass(frozen=True)
class _Origin:
    """Where a model comes from: a folder or Hub id, and the GGUF file in it if it is one."""

    place: str
    gguf: str | None

    @classmethod
    def find(cls, source: str) -> _Origin:
        path = Path(source)
        if path.suffix != ".gguf":
            return cls(source, None)
        if not path.is_file():
            raise UserError(f"{source}: there is no such file")
        return cls(str(path.parent), path.name)

    @property
    def file(self) -> dict[str, Any]:
        return {} if self.gguf is None else {"gguf_file": self.gguf}

    def config(self) -> PreTrainedConfig:
        head_dim = None if self.gguf is None else check_gguf(Path(self.place, self.gguf))
        try:
            config = from_pretrained(AutoConfig, self.place, **self.file)
        except (OSError, ValueError) as error:
            where = self.place if Path(self.place).exists() else f"{self.place} is no folder here, and on the Hub"
            raise UserError(f"{where}: {first_line(error)}") from None
        if head_dim is not None:
            config.head_dim = head_dim
        return config

    def model(self, config: PreTrainedConfig) -> PreTrainedModel:
        extra = self.file if self.gguf is None else self.file | {"quantization_config": GgufConfig(dequantize=True)}
        try:
            return load_model(self.place, nothing_left=True, config=config, **extra)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.place}: {first_line(error)}") from None


def check_gguf(path: Path) -> int | None:
    """The width of a head if the file states it: transformers assumes one for several architectures.

    Raises UserError for rotary scalings, which transformers leaves unread.
    """
    reader = parsed_gguf(path)
    architecture = reader.fields["general.architecture"].contents()
    scaling = reader.fields.get(f"{architecture}.rope.scaling.type")
    if any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors) or (
        scaling is not None and scaling.contents() != "none"
    ):
        raise UserError(f"{path}: it scales its rotary angles, which cannot be read from GGUF; import the original")
    width = reader.fields.get(f"{architecture}.attention.key_length")
    return None if width is None else int(width.contents())
