"""LongPPL (arXiv 2410.23771): perplexity of those tokens for which far context matters, found by an evaluator model."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from eval.perplexity import Perplexity, Scored, over_texts, rolling_windows, strided_windows, token_losses
from eval.text import Text

GAIN, CERTAIN = 2.0, 2.0
"""A token is key where the whole context gains more than GAIN nats, and leaves less than CERTAIN."""

Mask = NDArray[np.bool_]


def key_tokens(evaluator: Scored, texts: Sequence[Text], short: int, step: int) -> list[Mask]:
    """For each text which of its tokens but the first [n-1] are key: predicted by the whole text, not by its last part.

    short, step: tokens that the short context reads at most, and how many are scored before it moves (4,096 and 1,024
    in the paper, for texts of 16,384 and more). The evaluator must be made for the longest text.
    """
    whole = token_losses(evaluator, texts, lambda tokens: rolling_windows(tokens, tokens))
    cut = token_losses(evaluator, texts, lambda tokens: strided_windows(tokens, short, step))
    return [(part - full > GAIN) & (full < CERTAIN) for full, part in zip(whole, cut, strict=True)]


def transferred(masks: Sequence[Mask], texts: Sequence[Text], others: Sequence[Text]) -> list[Mask]:
    """The masks of texts for the same texts cut by another tokenizer: its tokens that lie within key spans of bytes."""
    return [_transferred(*items) for items in zip(masks, texts, others, strict=True)]


def _transferred(mask: Mask, text: Text, other: Text) -> Mask:
    key = np.concatenate(([0], np.cumsum(np.repeat(np.concatenate(([False], mask)), text.bytes))))
    ends = np.cumsum(other.bytes)
    within = key[ends] - key[ends - other.bytes] == other.bytes
    return np.asarray(within[1:] & (other.bytes[1:] > 0))


def long_perplexity(model: Scored, texts: Sequence[Text], masks: Sequence[Mask]) -> Perplexity:
    """Of the key tokens alone, each predicted from all of its text before it.

    Raises NoFigureError where no token is key.
    """
    losses = token_losses(model, texts, lambda tokens: rolling_windows(tokens, tokens))
    return over_texts("key-tokens", texts, losses, counted=masks)
