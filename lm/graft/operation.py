"""What is grafted onto what: the base as a Braid model, the same with its new pattern, and the weights of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from lm.errors import UserError
from lm.extend import base
from lm.extend.options import BaseOptions
from lm.graft.options import GraftOptions
from lm.hf import BraidConfig, BraidForCausalLM
from lm.hf.families import describe, translate
from lm.hf.loading import forget_gguf
from lm.hf.patterns import assemble, with_pattern
from lm.model.options import ModelOptions


@dataclass(frozen=True)
class Operation:
    """A pretrained model of the Llama family, or a Braid model, that gets other mixers in some layers."""

    base: BaseOptions
    graft: GraftOptions

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The base's own configuration."""
        return base.read_config(self.base)

    @cached_property
    def before(self) -> ModelOptions:
        """The base as a Braid model. Raises UserError where it has no such form."""
        if isinstance(self.config, BraidConfig):
            return self.config.to_options()
        try:
            return ModelOptions(**describe(self.config))
        except UserError as error:
            raise UserError(f"base.path: {self.base.path}: {error}") from None

    @cached_property
    def after(self) -> ModelOptions:
        """The grafted model. Raises UserError, naming the key, for a pattern or a mixer that does not fit the base."""
        mixers = self.graft.model_dump(mode="json")["mixers"]
        return with_pattern(self.before.model_dump(mode="json"), self.graft.layers, mixers, "graft.layers")

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers whose mixer is another."""
        old, new = ([model.mixers[name] for name in model.layer_names] for model in (self.before, self.after))
        return tuple(layer for layer in range(len(old)) if old[layer] != new[layer])

    def check(self, tokens: int, sequence_length: int) -> None:
        """Raises UserError for what cannot work, before any weight is read.

        tokens: of the run's tokenizer. sequence_length: of the longest rows.
        """
        if self.base.quantization != "none":
            raise UserError(f"base.quantization: {self.base.quantization} is not for grafting: choose none")
        base.check_vocabulary(self.config, tokens)
        if not self.layers:
            raise UserError(f"graft.layers: '{self.graft.layers}' is what the base has already: name other mixers")
        for layer in self.layers:
            name = self.after.layer_names[layer]
            if self.after.mixers[name].kind == "shifted_short":
                raise UserError(
                    f"graft.mixers.{name}: shifted_short cannot take the place of layer {layer}: it is full attention "
                    "once trained, with a full cache. It belongs into extend.attention."
                )
        longest = base.context(self.config)
        if sequence_length > longest:
            raise UserError(
                f"data.sequence_length: rows of {sequence_length} exceed the base's context of {longest}: shorten them"
            )

    def weights(self) -> dict[str, Tensor]:
        """The base's weights in float32, by the names of a Braid model, a tied one once."""
        model = base.load(self.base, self.config, torch.float32)
        forget_gguf()
        if isinstance(model, BraidForCausalLM):
            return {name: parameter.detach() for name, parameter in model.named_parameters()}
        return dict(translate(self.config, model.state_dict()))

    def original(self, weights: Mapping[str, Tensor]) -> BraidForCausalLM:
        """The base as a Braid model around `weights`."""
        return assemble(BraidConfig.from_options(self.before), weights, torch.float32, seed=0)[0]

    def grafted(self, weights: Mapping[str, Tensor], seed: int) -> BraidForCausalLM:
        """The model with its new pattern: in the grafted layers copies of weights that fit and others drawn by `seed`,
        elsewhere `weights` themselves."""
        mixing = tuple(f"model.layers.{layer}.{part}." for layer in self.layers for part in ("mixer", "short_conv"))
        own = {name: tensor.clone() if name.startswith(mixing) else tensor for name, tensor in weights.items()}
        return assemble(BraidConfig.from_options(self.after), own, torch.float32, seed)[0]
