"""Turns a Llama-family model into a Braid model: the same function, or as many of its weights as a new pattern fits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights

from lm.errors import UserError
from lm.hf.configuration import BraidConfig
from lm.hf.families import describe, reasons, translate
from lm.hf.modeling import BraidForCausalLM
from lm.model.block import Block
from lm.model.mixers import MIXERS
from lm.model.options import ModelOptions
from lm.model.short_conv import ShortConvolution
from lm.pattern import PatternError, expand


@dataclass(frozen=True)
class Layer:
    """Which weights of one layer's mixer, with its convolution, came from the original and which are new."""

    mixer: str
    kept: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        if not self.new:
            return f"{self.mixer}: all kept"
        return f"{self.mixer}: new {', '.join(self.new)}; kept {', '.join(self.kept) or 'none'}"


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
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: not empty; name a new folder for the imported model")
    origin = _Origin.find(source)
    theirs = origin.config()
    try:
        described = describe(theirs)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    options = _options(described, layers, mixers or {})
    token_ids = {name: getattr(theirs, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = BraidConfig.from_options(options, **token_ids)

    original = origin.model(theirs)
    dtype, generation_config = original.dtype, original.generation_config
    state = dict(translate(theirs, original.state_dict()))
    del original
    model, report = _assemble(config, state, dtype, seed)
    model.generation_config = generation_config
    if not torch.cuda.is_available():
        os.environ.setdefault(
            "DS_ACCELERATOR", "cpu"
        )  # saving imports DeepSpeed, which otherwise prints that it guesses
    model.save_pretrained(folder)
    no_tokenizer = None
    try:
        AutoTokenizer.from_pretrained(origin.place, **origin.file).save_pretrained(folder)
    except (OSError, ValueError) as error:
        no_tokenizer = str(error).strip().split("\n")[0]
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
            config = AutoConfig.from_pretrained(self.place, **self.file)
        except (OSError, ValueError) as error:
            raise UserError(f"{self.place}: {error}") from None
        if head_dim is not None:
            config.head_dim = head_dim
        return config

    def model(self, config: PreTrainedConfig) -> PreTrainedModel:
        extra = self.file if self.gguf is None else self.file | {"quantization_config": GgufConfig(dequantize=True)}
        model, info = AutoModelForCausalLM.from_pretrained(self.place, config=config, output_loading_info=True, **extra)
        if info["missing_keys"]:
            raise UserError(f"{self.place}: the weights {', '.join(sorted(info['missing_keys']))} are missing")
        return model


def check_gguf(path: Path) -> int | None:
    """The width of a head if the file states it: transformers assumes one for several architectures.

    Raises UserError for rotary scalings, which transformers leaves unread.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(f"{path}: reading GGUF files needs the package gguf: pip install gguf") from None
    reader = GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    scaling = reader.fields.get(f"{architecture}.rope.scaling.type")
    if any(tensor.name == "rope_freqs.weight" for tensor in reader.tensors) or (
        scaling is not None and scaling.contents() != "none"
    ):
        raise UserError(f"{path}: it scales its rotary angles, which cannot be read from GGUF; import the original")
    width = reader.fields.get(f"{architecture}.attention.key_length")
    return None if width is None else int(width.contents())


def _options(described: dict[str, Any], layers: str | None, mixers: Mapping[str, Mapping[str, Any]]) -> ModelOptions:
    """The options of the original, or of the changed pattern; softmax mixers start from the original's own."""
    if layers is None:
        if mixers:
            raise UserError("--mixers without --layers: give the pattern that uses them")
        return ModelOptions(**described)
    own: dict[str, dict[str, Any]] = described["mixers"]
    first = own.get("global") or next(iter(own.values()))
    inherited = {key: value for key, value in first.items() if key not in ("kind", "window")}
    given = {**_ready_mixers(described["num_attention_heads"]), **mixers}
    defined = {name: _inherit(mixer, inherited) for name, mixer in given.items()}
    available = {**defined, **{name: mixer for name, mixer in own.items() if name not in mixers}}
    try:
        names = expand(layers, available)
    except PatternError as error:
        raise UserError(f"--layers: {error}") from None
    count = len(expand(described["layers"], own))
    if len(names) != count:
        raise UserError(f"--layers: '{layers}' has {len(names)} layers, the model has {count}")
    used = {name: available[name] for name in dict.fromkeys(names)}
    try:
        return ModelOptions(**described | {"mixers": used, "layers": layers})
    except ValidationError as error:
        raise UserError(f"--layers '{layers}': {reasons(error)}") from None


def _ready_mixers(heads: int) -> dict[str, dict[str, Any]]:
    """Mixers that a new pattern may name without defining them."""
    groups = next((count for count in range(2, heads) if heads % count == 0), heads)
    return {
        "global": {"kind": "attention"},
        "local": {"kind": "attention", "window": 1024},
        "rat": {"kind": "rat", "chunk_size": 16, "qk_groups": groups},
    }


def _inherit(mixer: Mapping[str, Any], inherited: Mapping[str, Any]) -> dict[str, Any]:
    known = MIXERS.get(mixer.get("kind", ""))
    return {**(inherited if known is not None and known.over_tokens else {}), **mixer}


def _assemble(
    config: BraidConfig, state: dict[str, Tensor], dtype: torch.dtype, seed: int
) -> tuple[BraidForCausalLM, tuple[Layer, ...]]:
    """The model with every tensor of `state` that fits; mixers that need more are drawn first, layer by layer."""
    with torch.device("meta"), no_init_weights():
        model = BraidForCausalLM(config)
    options = config.to_options()
    report = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index, (block, name) in enumerate(zip(model.model.layers, options.layer_names, strict=True)):
            assert isinstance(block, Block)
            prefix = f"model.layers.{index}.mixer."
            given = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
            if not block.mixer.over_tokens:  # its queries and keys belong to other heads
                given = {key: tensor for key, tensor in given.items() if key.split(".")[0] not in ("q_proj", "k_proj")}
            wanted = dict(block.mixer.named_parameters())
            kept = [key for key in wanted if key in given and given[key].shape == wanted[key].shape]
            new = [key for key in wanted if key not in kept]
            if new:
                block.mixer = MIXERS[options.mixers[name].kind](options.mixers[name], options.dimensions)
                block.mixer.init_weights(options.initializer_range)
                block.mixer.to(dtype)
            if block.short_conv is not None:
                block.short_conv = ShortConvolution(options.hidden_size, len(block.short_conv.weight)).to(dtype)
                new.append("short_conv")
            for key in [key for key in state if key.startswith(prefix) and key.removeprefix(prefix) not in kept]:
                del state[key]
            report.append(Layer(name, tuple(kept), tuple(new)))
    _, unexpected = model.load_state_dict(state, strict=False, assign=True)
    assert not unexpected, unexpected
    model.tie_weights()
    assert not any(parameter.is_meta for parameter in model.parameters())
    return model.eval(), tuple(report)
