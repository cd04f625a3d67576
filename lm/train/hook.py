"""What else a training can be asked to find out about its model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from lm.data.tokenizers import Tokenizer
from lm.train.evaluate import Evaluated
from lm.train.progress import Progress


class Hook(Protocol):
    """Called between steps, on all ranks. What it finds goes into the step's record, under names of its own."""

    @property
    def title(self) -> str:
        """What it does, for the screen."""

    @property
    def every(self) -> int:
        """Steps between calls; one more follows the last step."""

    def prepare(self, tokenizer: Tokenizer, progress: Progress) -> None:
        """Called once, before the model is built. Raises UserError for what cannot work."""

    def __call__(self, engine: Evaluated) -> Mapping[str, float]:
        """Figures of the model as it is. Collective; leaves weights and random numbers as they were."""
