"""Stage two as the training loop sees it: the grafted model as a base of its own, at the context that it has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from lm.data.tokenizers import Tokenizer
from lm.extend.options import BaseOptions, LoraOptions
from lm.extend.plan import check_targets, plan_extension
from lm.extend.trainee import Extension
from lm.graft.operation import Operation
from lm.graft.options import GraftOptions
from lm.hf import BraidConfig
from lm.model.options import ModelOptions
from lm.plan import ALONE, Plan, Shared, make_plan
from lm.train.checkpoint import Counters
from lm.train.file_names import GRAFTED
from lm.train.trainee import Built


@dataclass(frozen=True)
class Grafting:
    """A pretrained model with other mixers in some layers.

    lora: None trains everything in stage two. dtype, lr: of stage two, as `Extension` has them. folder: of the run.
    """

    base: BaseOptions
    graft: GraftOptions
    lora: LoraOptions | None
    dtype: torch.dtype
    lr: float
    folder: Path

    @cached_property
    def operation(self) -> Operation:
        """What is grafted onto what."""
        return Operation(self.base, self.graft)

    @cached_property
    def tuning(self) -> Extension:
        """Stage two. Its base is there once stage one is done."""
        return Extension(BaseOptions(path=str(self.folder / GRAFTED)), None, self.lora, self.dtype, self.lr)

    def check(self, tokens: int, sequence_length: int) -> None:
        """Raises UserError for what cannot work, before data or weights are read.

        tokens: of the run's tokenizer. sequence_length: of its rows.
        """
        self.operation.check(tokens, max(sequence_length, self.graft.regress.sequence_length or 0))
        if self.lora is not None:
            check_targets(BraidConfig.from_options(self.operation.after), self.lora)

    @property
    def options(self) -> ModelOptions:
        return self.operation.after

    def plan(self, sequence_length: int, dtype: torch.dtype, shared: Shared = ALONE) -> Plan:
        """The plan of stage two, with the cache that the base would need."""
        config = BraidConfig.from_options(self.operation.after)
        plan = plan_extension(config, None, self.lora, sequence_length, dtype, shared)
        return replace(plan, base_cache_bytes=make_plan(self.operation.before, sequence_length, dtype).cache_bytes)

    def build(self) -> Built:
        return self.tuning.build()

    def save(self, folder: Path, weights: Mapping[str, Tensor], tokenizer: Tokenizer, counters: Counters) -> None:
        self.tuning.save(folder, weights, tokenizer, counters)
