"""A pretrained model as the training loop sees it: planned from its configuration, built from its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.extend import base
from lm.extend.adapters import add_adapters, learning_rate_factors
from lm.extend.model import extended, fingerprint
from lm.extend.options import BaseOptions, ExtendOptions, LoraOptions
from lm.extend.plan import check_targets, plan_extension
from lm.extend.stand_in import stand_in, stand_in_options
from lm.hf import BraidConfig
from lm.hf.loading import forget_gguf
from lm.model.mixers import Mixer
from lm.model.options import ModelOptions
from lm.plan import ALONE, Plan, Shared
from lm.train.checkpoint import Counters
from lm.train.model_file import save_weights
from lm.train.trainee import Built


@dataclass(frozen=True)
class Extension:
    """A pretrained model that learns a longer context, or just goes on learning.

    extend: None leaves context and attention as the base has them. lora: None trains everything. dtype: of the frozen
    weights and of the arithmetic. lr: the run's peak learning rate.
    """

    base: BaseOptions
    extend: ExtendOptions | None
    lora: LoraOptions | None
    dtype: torch.dtype
    lr: float

    @cached_property
    def config(self) -> PreTrainedConfig:
        """The base's own configuration."""
        return base.read_config(self.base)

    @property
    def base_context(self) -> int:
        """Tokens that the base is made for."""
        return base.context(self.config)

    @property
    def context(self) -> int:
        """Tokens that the trained model is made for."""
        return self.base_context if self.extend is None else self.extend.target_length

    @property
    def group_size(self) -> int | None:
        """Of S2 while training; None where layers attend as the base's do."""
        return None if self.extend is None else self.extend.group_size

    def check(self, tokens: int, sequence_length: int) -> None:
        """Raises UserError for what cannot work, before data or weights are read.

        tokens: of the run's tokenizer. sequence_length: of its rows.
        """
        base.check_quantization(self.base)
        base.check_vocabulary(self.config, tokens)
        planned = base.plan_config(self.config, self.extend, training=True)
        base.check_angles(self.config, sequence_length)
        if sequence_length > self.context:
            raise UserError(
                f"data.sequence_length: {sequence_length} exceeds the base's context of {self.context}: shorten the "
                "rows, or extend further with an extend section"
            )
        if self.lora is not None:
            check_targets(planned, self.lora)

    @property
    def options(self) -> ModelOptions:
        config = base.plan_config(self.config, self.extend, training=True)
        return config.to_options() if isinstance(config, BraidConfig) else stand_in_options(config, self.group_size)

    def plan(self, sequence_length: int, dtype: torch.dtype, shared: Shared = ALONE) -> Plan:
        config = base.plan_config(self.config, self.extend, training=True)
        quantized = self.base.quantization != "none"
        return plan_extension(config, self.group_size, self.lora, sequence_length, dtype, shared, quantized)

    def build(self) -> Built:
        config = base.plan_config(self.config, self.extend, training=True)
        model = base.load(self.base, config, self.dtype)
        forget_gguf()  # training has better use for the memory
        result = extended(model, self.group_size)
        if self.lora is None:
            model.requires_grad_(True)
            return Built(result, mixers=self.mixers)
        add_adapters(model, self.lora)
        factors = learning_rate_factors(result, self.lora.learning_rates, self.lr)
        return Built(result, factors, fingerprint(result), self.mixers)

    @property
    def mixers(self) -> list[Mixer[Any]]:
        """What stands for the attention of the base's layers, to count what it scores; Braid's own layers need none."""
        if isinstance(self.config, BraidConfig):
            return []
        return [stand_in(self.config, self.group_size)] * self.config.num_hidden_layers

    def save(self, folder: Path, weights: Mapping[str, Tensor], tokenizer: Tokenizer, counters: Counters) -> None:
        """What was trained, without what stands in the base: `braid export` joins the two."""
        save_weights(folder, weights)
        tokenizer.save(folder)
