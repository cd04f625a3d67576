"""Held-out evaluations of a run: at their interval, over a part of the text, and at the end over all of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from lm.data.validation import Validation
from lm.train.evaluate import Evaluated, evaluate
from lm.train.evaluation import Evaluation
from lm.train.folder import RunFolder
from lm.train.options import TrainOptions
from lm.train.periodic import at_interval
from lm.train.progress import Progress
from lm.train.report import save_report_data


class HeldOut:
    """The held-out loss, for the log and for the report."""

    def __init__(
        self,
        engine: Evaluated,
        validation: Validation | None,
        train: TrainOptions,
        folder: RunFolder,
        progress: Progress,
        averaged: Callable[[], AbstractContextManager[None]] | None = None,
    ) -> None:
        """`validation`: None where nothing is held out; then every evaluation finds nothing.

        averaged: gives the model averaged weights for a while; None where there are none.
        """
        self._with_average = averaged
        self._engine = engine
        self._validation = validation
        self._train = train
        self._folder = folder
        self._progress = progress
        self.last: Evaluation | None = None
        """The newest evaluation that this process has made."""

    def due(self, step: int) -> bool:
        return at_interval(step, self._train.evaluate_every, self._train.steps)

    def tokens(self, step: int) -> int | None:
        """How many are read at most: of a part of the text while steps are left, then, None, of all."""
        return self._train.evaluate_tokens if step < self._train.steps else None

    def __call__(self, step: int) -> Mapping[str, Any]:
        """Evaluates. Collective."""
        if self._validation is None:
            return {}
        tokens = self.tokens(step)
        with self._progress.phase("evaluating"):
            found = evaluate(self._engine, self._validation, step, self._train.micro_batch_size, tokens)
            averaged = self._averaged_loss(step, tokens)
        self.last = found
        if self._engine.world.rank == 0:
            try:
                save_report_data(self._folder.root, evaluation=found)
            except OSError as error:
                self._progress.say(
                    f"the evaluation was not written: {error}; the next one, or the end, writes it again"
                )
        return {
            "validation_loss": found.loss,
            "validation_perplexity": found.perplexity,
            "validation_accuracy": found.accuracy,
            **({} if found.bits_per_byte is None else {"validation_bits_per_byte": found.bits_per_byte}),
            **({} if averaged is None else {"average_validation_loss": averaged}),
        }

    def _averaged_loss(self, step: int, tokens: int | None) -> float | None:
        """With averaged weights, where the run keeps any."""
        if self._validation is None or self._with_average is None:
            return None
        with self._with_average():
            return evaluate(self._engine, self._validation, step, self._train.micro_batch_size, tokens).loss
