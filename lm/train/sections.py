"""The sections that every run file has, whatever the run trains."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from lm.data.options import DataOptions
from lm.options import Options
from lm.train.deepspeed_options import DeepSpeedOptions
from lm.train.guard_options import GuardOptions
from lm.train.observe.options import ObserveOptions
from lm.train.optimizer_options import OptimizerOptions
from lm.train.options import LogOptions, TrainOptions, check_run


class Sections(Options):
    """Text, length, optimizer, engine and log of a run."""

    data: DataOptions = Field(description="The text, its tokenizer, and how it is cut into rows.")
    train: TrainOptions = Field(description="Length, batch, precision, evaluation and checkpoints of the run.")
    optimizer: OptimizerOptions = Field(description="The optimizer and its learning-rate schedule.")
    deepspeed: DeepSpeedOptions = Field(
        default=DeepSpeedOptions(), description="ZeRO stage, and any other DeepSpeed setting, passed through."
    )
    observe: ObserveOptions = Field(
        default=ObserveOptions(), description="What is looked at inside the model while it trains."
    )
    guard: GuardOptions = Field(default=GuardOptions(), description="What is done about spikes of the loss.")
    log: LogOptions = Field(default=LogOptions(), description="What is shown, and what goes to Weights & Biases.")

    @model_validator(mode="after")
    def _batches_fit(self) -> Self:
        check_run(self.train, self.optimizer, self.data.sequence_length)
        return self
