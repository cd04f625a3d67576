"""How far a model goes: the tokens it is made for, the positions it has embeddings for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER
from transformers.utils import logging


def stated_context(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The longest row in tokens that the model, or its tokenizer, says it is made for; None if neither does."""
    config, spoken = model.config, int(tokenizer.model_max_length)
    found = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    return int(found) if found else spoken if spoken < VERY_LARGE_INTEGER else None


def learned_positions(model: PreTrainedModel) -> int | None:
    """Positions that a model has embeddings for; None where it has none, and so takes any."""
    ends = ("wpe", "embed_positions", "position_embeddings")
    learned = any(isinstance(part, nn.Embedding) and name.endswith(ends) for name, part in model.named_modules())
    return getattr(model.config, "max_position_embeddings", None) if learned else None


@contextmanager
def without_reminders() -> Iterator[None]:
    """Keeps transformers from warning of rows longer than a model is made for, which Braid says in its own words."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
