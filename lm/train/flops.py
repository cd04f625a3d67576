"""The FLOPs of a step's real documents: packed rows hold several, so attention scores fewer pairs than in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from lm.model.documents import Documents
from lm.model.mixers import Mixer
from lm.plan import BACKWARD_TO_FORWARD, Plan


class StepFlops:
    """Counts the forward and backward FLOPs of a step's micro-batches on one rank."""

    def __init__(self, model: nn.Module, plan: Plan, mixers: Sequence[Mixer[Any]] = ()) -> None:
        """`plan`: of `model`, whose rows count as one document each. `mixers`: see `lm.train.trainee.Built`."""
        self._plan = plan
        self._kinds: dict[str, tuple[Mixer[Any], int]] = {}  # layers of the same options score the same pairs
        for mixer in mixers or (module for module in model.modules() if isinstance(module, Mixer)):
            key = f"{type(mixer).__name__} {mixer.options!r} {mixer.dimensions!r}"
            self._kinds[key] = (mixer, self._kinds.get(key, (mixer, 0))[1] + 1)
        self._row = self._attention([plan.sequence_length])

    def __call__(self, lengths: Sequence[Sequence[int]]) -> float:
        """lengths: of the documents of each micro-batch, which fill whole rows."""
        tokens = sum(map(sum, lengths))
        rows = tokens / self._plan.sequence_length
        attention = sum(map(self._attention, lengths)) - rows * self._row
        return self._plan.training_flops_per_token * tokens + (1 + BACKWARD_TO_FORWARD) * attention

    def _attention(self, lengths: Sequence[int]) -> int:
        """Forward FLOPs of scores and values, over all layers."""
        documents = Documents.from_lengths(lengths)
        return sum(
            4 * mixer.dimensions.head_dim * mixer.scored_pairs(documents) * layers
            for mixer, layers in self._kinds.values()
        )
