"""The run file's `graft` section: the new pattern, its mixers, and how they learn what the old ones did."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_serializer, model_validator

from lm.model.options import AnyMixer
from lm.options import Options
from lm.train.optimizer_options import CosineSchedule, OptimizerOptions, ScheduleOptions, check_schedule
from lm.train.stage_options import check_batch


class RegressionOptimizerOptions(OptimizerOptions):
    """AdamW for the new mixers alone. Nothing is decayed unless asked."""

    lr: float = Field(default=2e-4, gt=0, description="Peak learning rate.")
    sink_lr: float = Field(
        default=0.4, gt=0, description="Peak learning rate of learned sinks, which are logits and have units to go."
    )
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay of matrices.")
    schedule: ScheduleOptions = Field(
        default=CosineSchedule(kind="cosine", warmup_steps=0.05, min_lr_ratio=0.0),
        description="Learning rate as a function of the step.",
    )

    @model_validator(mode="after")
    def _of_weights_that_are_there(self) -> Self:
        if self.base_width is not None:
            raise ValueError("base_width: a base has its weights already: remove it")
        return self


class RegressOptions(Options):
    """Stage one: every new mixer learns by itself to give what the original's mixer in its place gives."""

    steps: int = Field(ge=1, description="Optimizer steps of stage one; fractions in its schedule are of these.")
    global_batch_tokens: int = Field(
        ge=1, description="Tokens per step over all ranks; a multiple of the sequence length."
    )
    sequence_length: int | None = Field(
        default=None, ge=1, description="Tokens per row in stage one; none: data.sequence_length."
    )
    loss: Literal["l1", "l2", "huber"] = Field(
        default="l1",
        description="Distance of a new mixer's outputs from the old one's. Attention has outliers, of which l1 makes "
        "least; huber is l2 up to the root mean square of a token's output, and l1 beyond.",
    )
    optimizer: RegressionOptimizerOptions = Field(
        default=RegressionOptimizerOptions(), description="Optimizer and schedule of stage one."
    )

    def check(self, sequence_length: int) -> None:
        """Raises ValueError, naming the key, where the parts do not fit. sequence_length: of the run's rows."""
        length_key = "data.sequence_length" if self.sequence_length is None else "graft.regress.sequence_length"
        length = self.sequence_length or sequence_length
        check_batch("graft.regress.global_batch_tokens", self.global_batch_tokens, length_key, length)
        check_schedule("graft.regress.optimizer.schedule", self.optimizer.schedule, "graft.regress.steps", self.steps)


class GraftOptions(Options):
    """Which layers of the base get other mixers, and the first of the two stages that heal the model."""

    layers: str = Field(
        min_length=1,
        description="The new pattern, of as many layers as the base. Layers whose mixer is the base's own stay as they "
        "are.",
    )
    mixers: dict[str, AnyMixer] = Field(
        default={},
        description="Mixers of the pattern, by name, where the base's own (`global`, `local`), `rat` and `local` do "
        "not suffice. Positions, biases and norms that a softmax mixer leaves out are the base's.",
    )
    regress: RegressOptions = Field(description="Stage one. Stage two is the run's own train and optimizer.")

    @field_serializer("mixers")
    def _as_given(self, mixers: dict[str, AnyMixer]) -> dict[str, dict[str, Any]]:
        # What is left out is taken from the base, so a file with every default written out would say something else.
        return {name: mixer.model_dump(mode="json", exclude_unset=True) for name, mixer in mixers.items()}
