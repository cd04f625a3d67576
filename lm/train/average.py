"""An exponential moving average of the master weights, in the same pieces as they are, at any ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import torch

from lm.train.shards import Fragment

AVERAGE = "average"
"""The kind of these pieces in fragments and checkpoints."""


class WeightAverage:
    """average = decay * average + (1 - decay) * weight, after every update.

    The decay of update t is at most (1 + t) / (10 + t), so that an early average does not remember the first weights.
    """

    def __init__(self, fragments: Iterable[Fragment], decay: float) -> None:
        """`fragments`: this rank's, whose views stay valid; the average begins at their weights."""
        self._fragments = list(fragments)
        self._weights = [fragment.parts["weight"] for fragment in self._fragments]
        self._averages = [weight.clone() for weight in self._weights]
        self._decay = decay

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Takes in the weights after `updates` updates, this one among them."""
        decay = min(self._decay, (1 + updates) / (10 + updates))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges weights and averages. What the forward pass uses must be made to follow (`shards.publish`)."""
        for weight, average in zip(self._weights, self._averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)

    def fragments(self) -> list[Fragment]:
        """The pieces, with their averages beside the weights."""
        return [
            replace(fragment, parts={**fragment.parts, AVERAGE: average})
            for fragment, average in zip(self._fragments, self._averages, strict=True)
        ]
