"""The pretrained model of an extension: read, refused by name where it cannot be extended, planned, loaded."""

from __future__ import annotations

import copy
import importlib.util
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.initialization import no_init_weights
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lm.data.cache import cached_folder
from lm.data.fingerprint import digest
from lm.errors import UserError, first_line
from lm.extend import braid_base
from lm.extend.options import BaseOptions, ExtendOptions
from lm.extend.rope_plan import ORIGINAL, check_target, covered_context, fixed_until, plan_rope
from lm.hf import BraidConfig
from lm.hf.families import FAMILIES
from lm.hf.importing import check_gguf
from lm.hf.loading import absent_here, from_pretrained, load_model

HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def read_config(base: BaseOptions) -> PreTrainedConfig:
    """The configuration of the base. Raises UserError where there is none, or it is not of a causal language model."""
    path = Path(base.path).expanduser()
    if absent := absent_here(path):
        raise UserError(f"base.path: {absent}")
    if not path.exists() and (base.path.endswith(".gguf") or not HUB_ID.fullmatch(base.path)):
        raise UserError(f"base.path: {base.path}: there is no such file or folder.")
    if base.path.endswith(".gguf"):
        head_dim = check_gguf(path)
    elif path.is_dir() and not (path / "config.json").exists():
        raise UserError(f"base.path: the folder {base.path} holds no config.json: name a Hugging Face folder")
    else:
        head_dim = None
    try:
        config = from_pretrained(AutoConfig, **place(base))
    except (OSError, ValueError) as error:
        where = base.path if path.exists() else f"{base.path} is no folder here, and on the Hub"
        raise UserError(f"base.path: {where}: {first_line(error)}") from None
    if head_dim is not None:
        config.head_dim = head_dim
    causal = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and not config.is_encoder_decoder
    architectures = config.architectures or []
    if not causal or (architectures and not any("CausalLM" in name or "LMHead" in name for name in architectures)):
        what = ", ".join(architectures) or config.model_type
        raise UserError(f"base.path: {base.path} is not a causal language model but {what}")
    return config


def plan_config(config: PreTrainedConfig, extend: ExtendOptions | None, *, training: bool) -> PreTrainedConfig:
    """The configuration of the extended model; without `extend` that of the base.

    training: with what only training has, which for Braid's own models are groups in place of global attention.
    Raises UserError, naming the key, for a base or a target that cannot work.
    """
    if isinstance(config, BraidConfig):
        return config if extend is None else braid_base.plan_config(config, extend, training=training)
    _refuse_unhandled(config)
    if extend is None:
        return config
    if extend.attention == "shifted_short" and config.num_attention_heads < 2:
        raise UserError("extend.attention: shifted_short needs a base with two attention heads: choose full")
    rope = config.rope_parameters
    covered = context(config)
    # Angles may be made for more than the model was trained on, and a further stage stays where it was trained.
    reached = int(config.max_position_embeddings) if extend.rope.kind == "none" else covered
    check_target(reached, extend.rope, extend.target_length)
    plan = plan_rope(
        rope,
        covered,
        int(_head_dim(config) * rope.get("partial_rotary_factor", 1.0)),
        extend.rope,
        extend.target_length,
    )
    planned = copy.deepcopy(config)
    if ORIGINAL in plan.parameters:
        setattr(planned, ORIGINAL, plan.parameters[ORIGINAL])  # transformers heeds it above the one in the parameters
    elif plan.parameters.get("rope_type") == "linear" and getattr(config, ORIGINAL, None) is None:
        # A second extension then knows that max_position_embeddings was raised.
        setattr(planned, ORIGINAL, int(config.max_position_embeddings))
    planned.max_position_embeddings = plan.max_position_embeddings
    planned.rope_parameters = plan.parameters
    planned.validate_rope()
    return planned


def context(config: PreTrainedConfig) -> int:
    """Tokens that the base is made for."""
    longest = int(config.max_position_embeddings)
    if isinstance(config, BraidConfig):
        return longest
    return covered_context(config.rope_parameters, longest, getattr(config, ORIGINAL, None))


def load(base: BaseOptions, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The base's weights in a model of the given configuration, in `dtype`.

    Raises UserError where weights are missing or cannot be read.
    """
    extra: dict[str, Any] = {}
    if base.path.endswith(".gguf"):
        extra["quantization_config"] = GgufConfig(dequantize=True)
    elif base.quantization == "nf4":
        extra["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    try:
        return load_model(**place(base), config=config, dtype=dtype, **extra)
    except (OSError, ValueError) as error:
        raise UserError(f"base.path: {base.path} cannot be loaded: {first_line(error)}") from None


def generation_config(base: BaseOptions, config: PreTrainedConfig) -> GenerationConfig:
    """How the base generates, as `load` finds it, without its weights."""
    if not base.path.endswith(".gguf"):
        found = place(base)
        with suppress(OSError):  # few of those who save a model by hand write one
            result: GenerationConfig = GenerationConfig.from_pretrained(found["place"], revision=found["revision"])
            return result
    return GenerationConfig.from_model_config(config)


def reconfigured(model: PreTrainedModel, config: PreTrainedConfig) -> PreTrainedModel:
    """The weights of `model`, which both share, in a model of another configuration that they fit."""
    with no_init_weights():
        result: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    result.load_state_dict(model.state_dict(), assign=True)
    result.tie_weights()
    return result.eval()


def check_quantization(base: BaseOptions) -> None:
    """Raises UserError where 4-bit weights cannot be had."""
    if base.quantization == "none":
        return
    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("base.quantization: nf4 needs a GPU and the package bitsandbytes; choose none")
    if base.path.endswith(".gguf"):
        raise UserError("base.quantization: nf4 cannot be made from a GGUF file; choose none, or the original")


def check_vocabulary(config: PreTrainedConfig, tokens: int) -> None:
    """Raises UserError where a tokenizer of `tokens` ids has more than the base has embeddings."""
    if tokens > config.vocab_size:
        raise UserError(
            f"data.tokenizer: it has {tokens} tokens, the base has embeddings for {config.vocab_size}: use the base's "
            "own tokenizer (leave data.tokenizer out)"
        )


def check_angles(config: PreTrainedConfig, length: int, key: str = "data.sequence_length") -> None:
    """Raises UserError where rows are so long that their angles follow from the longest document beside them.

    key: what the user asked for the length by.
    Packed documents would not be apart, and ranks that share a row would each turn their part by angles of its own.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    longest = fixed_until(rope, config.max_position_embeddings)
    if longest is not None and length > longest:
        raise UserError(
            f"{key}: above {longest} tokens the base's rotary positions ({rope['rope_type']}) depend on "
            f"the longest document of a batch, which is not handled; given {length}"
        )


def tokenizer_folder(base: BaseOptions, cache_dir: Path) -> Path:
    """A folder with the base's fast tokenizer: its own, or one written below `cache_dir`."""
    own = Path(base.path).expanduser()
    if (own / "tokenizer.json").exists() and (own / "tokenizer_config.json").exists():
        return own
    changed = [(status := own.stat()).st_size, status.st_mtime_ns] if own.is_file() else []

    def write(folder: Path) -> None:
        try:
            from_pretrained(AutoTokenizer, **place(base)).save_pretrained(folder)
        except (OSError, ValueError) as error:
            raise UserError(
                f"data.tokenizer: {base.path} brings none that can be read ({first_line(error)}): give one"
            ) from None

    return cached_folder(cache_dir, f"tokenizer-of-{digest([str(own.resolve()), base.revision, *changed])}", write)


def place(base: BaseOptions) -> dict[str, Any]:
    """Where `from_pretrained` finds the base."""
    path = Path(base.path).expanduser()
    if path.suffix == ".gguf":
        return {"place": str(path.parent), "gguf_file": path.name}
    place = str(path) if path.exists() else base.path
    return {"place": place, "revision": base.revision or "main"}


def _head_dim(config: PreTrainedConfig) -> int:
    own: int | None = getattr(config, "head_dim", None)
    return own or config.hidden_size // config.num_attention_heads


def _refuse_unhandled(config: PreTrainedConfig) -> None:
    """Raises UserError for layers whose attention is not plain causal attention over rotary positions."""
    named = f"base.path: a '{config.model_type}' model"
    windows_stay = ""
    if config.model_type in FAMILIES:
        windows_stay = " `braid import` makes a Braid model of it, whose windows stay as they are."
    types = set(getattr(config, "layer_types", None) or ["full_attention"])
    if others := sorted(types - {"full_attention"}):
        raise UserError(
            f"{named} with layers of type {', '.join(others)} is not handled: only full_attention is.{windows_stay}"
        )
    if getattr(config, "layer_types", None) is None and getattr(config, "sliding_window", None) is not None:
        raise UserError(
            f"{named} with a sliding window of {config.sliding_window} is not handled: its layers never see further. "
            f"Clear sliding_window in its config.json to train it with full attention.{windows_stay}"
        )
    if getattr(config, "attention_dropout", 0.0):
        raise UserError(f"{named} with attention_dropout {config.attention_dropout} is not handled: set it to 0")
    value_width = getattr(config, "v_head_dim", None)
    if value_width is not None and (getattr(config, "qk_nope_head_dim", None) or value_width != _head_dim(config)):
        raise UserError(f"{named} with latent attention (v_head_dim {value_width}) is not handled")
    rope = getattr(config, "rope_parameters", None)
    if not rope or config.nested_rope_parameter_keys(rope):
        raise UserError(f"{named} has no single set of rotary positions, which is not handled")
