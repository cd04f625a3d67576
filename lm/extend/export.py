"""What an extension leaves behind: the merged model as an ordinary Hugging Face folder, or the adapter alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.extend import base
from lm.extend.adapters import add_adapters, whole_modules
from lm.extend.trainee import Extension
from lm.hf import BraidForCausalLM
from lm.hf.export import Training, end_generation_at, export_model
from lm.hf.folders import written_whole
from lm.hf.loading import loading
from lm.hf.tokenizer import save_fast_tokenizer

PREFIX = "model."
"""Of the base's parameters in `ExtendedModel`, and so in checkpoints."""


def merged_model(
    extension: Extension, weights: Mapping[str, Tensor], model: PreTrainedModel | None = None
) -> PreTrainedModel:
    """The extended model in fp32, adapters merged, in the base's own class.

    weights: the trained ones, by the names they have in a checkpoint. Raises UserError where they are others.
    model: `plain_model` of the extension, if it is there already; it becomes the merged one.
    """
    if model is None:
        model = plain_model(extension)
    if extension.lora is None:
        _fill(model, {name.removeprefix(PREFIX): weights[name] for name in weights})
        return model
    adapted = add_adapters(model, extension.lora)
    _fill(model, {name.removeprefix(PREFIX): weights[name] for name in weights})
    return adapted.merge_and_unload().eval()


def export_merged(
    folder: Path,
    extension: Extension,
    weights: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    training: Training,
    ends: Sequence[int] = (),
) -> None:
    """Writes the merged model with its tokenizer into `folder`; plain transformers loads it (Braid's with its code).

    ends: ids that end generation beside the tokenizer's eos and what ends it in the base.
    """
    model = merged_model(extension, weights)
    if isinstance(model, BraidForCausalLM):
        options = model.config.to_options()
        weights, generation = dict(model.named_parameters()), model.generation_config
        export_model(folder, options, weights, tokenizer, training, ends, generation)
        return
    end_generation_at(model, [tokenizer.eos_id, *ends])
    length = extension.context
    with written_whole(folder) as written:
        with loading():
            model.save_pretrained(written)
        save_fast_tokenizer(tokenizer, written, length)
        settings = written / "tokenizer_config.json"  # a Hugging Face tokenizer is copied with the old length
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"model_max_length": length}, indent=2))


def export_adapter(folder: Path, extension: Extension, weights: Mapping[str, Tensor], ends: Sequence[int] = ()) -> None:
    """Writes a PEFT adapter, with the configuration of the extended model that it belongs on, and that of generation.

    ends: ids that end generation beside what ends it in the base. Raises UserError for a run that trained everything.
    """
    if extension.lora is None:
        raise UserError("--adapter-only: the run has no lora section, so it trained the whole model: export all of it")
    model = plain_model(extension)
    whole = set(whole_modules(model, extension.lora))
    adapted = add_adapters(model, extension.lora, copies=True)
    renamed = {}
    for name, tensor in weights.items():
        module, _, leaf = name.removeprefix(PREFIX).rpartition(".")
        renamed[f"{module}.modules_to_save.default.{leaf}" if module in whole else f"{module}.{leaf}"] = tensor
    _fill(model, renamed)
    with written_whole(folder) as written:
        with loading():
            adapted.save_pretrained(written)
        model.config.save_pretrained(written)
        end_generation_at(model, ends)
        model.generation_config.save_pretrained(written)


def plain_model(extension: Extension) -> PreTrainedModel:
    """The base with the extended configuration, in fp32: new rotary positions, and nothing trained."""
    return base_model(extension, base.plan_config(extension.config, extension.extend, training=False))


def base_model(extension: Extension, config: PreTrainedConfig) -> PreTrainedModel:
    """The base's weights in fp32, under a configuration that they fit."""
    unquantized = extension.base.model_copy(update={"quantization": "none"})
    return base.load(unquantized, config, torch.float32)


def _fill(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> None:
    """Puts trained weights in their places."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if trained != set(weights):
        odd = sorted(trained ^ set(weights))
        raise UserError(f"the run's weights are not those of its base and lora sections: {', '.join(odd[:4])}")
    model.load_state_dict(weights, strict=False)
