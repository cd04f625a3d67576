"""What a run trains, as the loop sees it: something that can be planned and built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lm.data.templates import answer_ends
from lm.data.tokenizers import Tokenizer
from lm.model.decoder import LanguageModel
from lm.model.mixers import Mixer
from lm.model.options import ModelOptions
from lm.plan import ALONE, Plan, Shared, make_plan
from lm.train.checkpoint import Counters
from lm.train.optimizer_options import OptimizerOptions
from lm.train.width import carry_over


@dataclass(frozen=True)
class Built:
    """A model to train: forward(tokens [N], documents, targets [N] or None) as `LanguageModel`'s.

    lr_factors: learning rates over the run's, by name of parameter, where they differ from 1.
    fingerprint: names the weights that are not trained, which no checkpoint holds.
    mixers: one for each layer, of the same heads and reach, where the model's own layers are not Braid's.
    """

    model: nn.Module
    lr_factors: Mapping[str, float] = field(default_factory=dict)
    fingerprint: str = ""
    mixers: Sequence[Mixer[Any]] = ()


class Trainee(Protocol):
    """A model that a run file describes."""

    @property
    def options(self) -> ModelOptions:
        """Its heads and mixers; attention stands for layers that are not Braid's."""

    def plan(self, sequence_length: int, dtype: torch.dtype, shared: Shared = ALONE) -> Plan:
        """What it costs, on ranks of which so many hold so many rows together."""

    def build(self) -> Built:
        """The model, with weights drawn from torch's global generator where they are new."""

    def save(self, folder: Path, weights: Mapping[str, Tensor], tokenizer: Tokenizer, counters: Counters) -> None:
        """Leaves the result of a run in `folder`: its trained weights, by name, and the tokenizer."""


@dataclass(frozen=True)
class FromScratch:
    """A Braid model whose weights begin at random.

    optimizer: what its weights and rates are carried over by. by_chat_template: whether the tokenizer's chat template
    writes answers that it learns.
    """

    options: ModelOptions
    optimizer: OptimizerOptions | None = None
    by_chat_template: bool = False

    def plan(self, sequence_length: int, dtype: torch.dtype, shared: Shared = ALONE) -> Plan:
        return make_plan(self.options, sequence_length, dtype, shared)

    def build(self) -> Built:
        model = LanguageModel(self.options)
        return Built(model, {} if self.optimizer is None else carry_over(model, self.optimizer))

    def save(self, folder: Path, weights: Mapping[str, Tensor], tokenizer: Tokenizer, counters: Counters) -> None:
        """A Hugging Face folder, beside the tokenizer as it was trained with."""
        from lm.hf.export import Training, export_model  # transformers comes with it

        training, ends = Training(counters.step, counters.tokens), answer_ends(tokenizer, self.by_chat_template)
        export_model(folder, self.options, weights, tokenizer, training, ends)
        tokenizer.save(folder)
