"""The sections that every run file has, whatever the run trains."""

from __future__ import annotations

from functools import cached_property
from typing import Self

from pydantic import Field, model_validator

from lm.data.options import DataOptions
from lm.options import Options
from lm.train.deepspeed_options import DeepSpeedOptions
from lm.train.guard_options import GuardOptions
from lm.train.observe.options import ObserveOptions
from lm.train.optimizer_options import OptimizerOptions
from lm.train.options import LogOptions, TrainOptions, check_run
from lm.train.timeline import Timeline


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
        check_run(self.train, self.optimizer, self.data.sequence_length, len(self.data.sources))
        for index, stage in enumerate(self.train.stages):
            if stage.shards is not None and self.data.generated:
                raise ValueError(f"train.stages.{index}.shards: generated sources have none: remove it")
        return self

    @model_validator(mode="after")
    def _checkpointing_fits(self) -> Self:
        if self.train.activation_checkpointing is not None and "base" in type(self).model_fields:
            raise ValueError("train.activation_checkpointing: the layers of a base are always recomputed: remove it")
        if self.optimizer.base_width is not None and "base" in type(self).model_fields:
            raise ValueError("optimizer.base_width: a base has its weights already: remove it")
        return self

    @model_validator(mode="after")
    def _compilation_fits(self) -> Self:
        if not self.train.compile:
            return self
        if "base" in type(self).model_fields:
            raise ValueError("train.compile: the layers of a base are not compiled: remove it")
        if self.deepspeed.zero_stage == 3:
            raise ValueError("train.compile: ZeRO 3 gathers weights between operations: use deepspeed.zero_stage 2")
        kept = self.train.activation_checkpointing
        if kept is not None and kept.kind == "selective":
            raise ValueError(
                "train.compile: selective activation checkpointing cannot look into compiled code: choose layers"
            )
        return self

    @model_validator(mode="after")
    def _state_in_files_fits(self) -> Self:
        if "offload_optimizer" not in self.deepspeed.on_nvme:
            return self
        beside = "which lie in files (deepspeed.zero_optimization.offload_optimizer.device nvme): use cpu, or"
        if self.train.average_decay is not None:
            raise ValueError(f"train.average_decay is kept beside the master weights, {beside} null")
        if self.optimizer.kind == "muon":
            raise ValueError(f"optimizer.kind muon gathers pieces of the master weights, {beside} adamw")
        return self

    @cached_property
    def timeline(self) -> Timeline:
        """What every step is."""
        return Timeline(self.train, self.optimizer, self.data.sequence_length)

    @property
    def longest_row(self) -> int:
        """Tokens of the longest rows that are read, held-out ones among them."""
        return max(self.timeline.longest_row, self.data.sequence_length)

    @property
    def longest_row_key(self) -> str:
        """Where the length of the longest rows is set."""
        lengths = [stage.sequence_length for stage in self.train.stages]
        if self.longest_row == self.data.sequence_length:
            return "data.sequence_length"
        return f"train.stages.{lengths.index(self.longest_row)}.sequence_length"
