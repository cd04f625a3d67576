"""The run file's `train.stages` and `train.batch_warmup`: how rows, batch and learning rate change during a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, model_validator

from lm.options import Options
from lm.train.optimizer_options import ScheduleOptions, check_schedule, schedule_steps


class StageOptions(Options):
    """Some of a run's steps. What a stage leaves out is the run's own."""

    steps: float | None = Field(
        default=None,
        gt=0,
        description="Steps of the stage; a number below 1 is a fraction of train.steps. The last stage may leave it "
        "out and takes the rest.",
    )
    sequence_length: int | None = Field(default=None, ge=1, description="Tokens per row; null: data.sequence_length.")
    global_batch_tokens: int | None = Field(
        default=None, ge=1, description="Tokens per optimizer step over all ranks; null: train.global_batch_tokens."
    )
    micro_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Rows of one forward on one rank; null: as many as hold the tokens of train.micro_batch_size rows "
        "of data.sequence_length, one at least.",
    )
    lr: float | None = Field(default=None, gt=0, description="Peak learning rate; null: optimizer.lr.")
    schedule: ScheduleOptions | None = Field(
        default=None,
        description="Learning rate over this stage's own steps, of which its fractions are; null: optimizer.schedule "
        "over the whole run goes on.",
    )
    weights: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] | None = Field(
        default=None,
        description="Shares of the entries of data.sources, in their order; 0 leaves one out. Null: their own weights.",
    )
    shards: Annotated[int, Field(ge=1)] | Literal["all"] | None = Field(
        default=None,
        description="Read the first so many shards of each source, or all: so a run that began on the first goes on "
        "into those that were made meanwhile. Null: data.shards, which also decides the held-out text.",
    )

    @model_validator(mode="after")
    def _whole_steps(self) -> StageOptions:
        _check_whole(self.steps)
        if self.weights is not None and not any(self.weights):
            raise ValueError("weights are all 0: one at least must be more")
        return self


class BatchWarmupOptions(Options):
    """A batch that grows, in equal increments of its first size, to the full one."""

    tokens: int = Field(
        ge=1,
        description="Tokens of the first steps, over all ranks: whole rows for every rank. The full batch is a "
        "multiple of it, and so is every batch on the way.",
    )
    steps: float = Field(
        gt=0,
        description="Steps until the batch is full, all within the first stage; a number below 1 is a fraction of "
        "train.steps.",
    )

    @model_validator(mode="after")
    def _whole_steps(self) -> BatchWarmupOptions:
        _check_whole(self.steps)
        return self


def _check_whole(steps: float | None) -> None:
    if steps is not None and steps >= 1 and steps != int(steps):
        raise ValueError(f"steps is {steps}: give a whole number of steps, or a fraction of them below 1")


def stage_begins(stages: Sequence[StageOptions], steps: int) -> list[int]:
    """The first step of every stage of a run of `steps`, and `steps` behind them.

    Fractions are added up before they are rounded, so that they fill any run. Raises ValueError where stages do not.
    """
    total, begins = 0.0, [0]
    for index, stage in enumerate(stages):
        last = index == len(stages) - 1
        if stage.steps is None and not last:
            raise ValueError(f"train.stages.{index}.steps is missing: only the last stage takes what is left")
        if stage.steps is None:
            total = steps
        else:
            total += stage.steps * steps if stage.steps < 1 else stage.steps
        begins.append(round(total))
        if not begins[-2] < begins[-1] <= steps or (last and begins[-1] != steps):
            raise ValueError(
                f"train.stages.{index}.steps is {stage.steps}, but {steps - begins[-2]} of train.steps {steps} are "
                f"left for {'it, the last stage' if last else 'it and the stages behind it'}"
            )
    return begins if stages else [0, steps]


def check_batch(key: str, tokens: int, length_key: str, length: int) -> None:
    """Raise ValueError if a batch of `tokens` is not whole rows of `length`."""
    if tokens % length:
        nearest = max(round(tokens / length), 1) * length
        raise ValueError(f"{key} is {tokens}, which is not a multiple of {length_key} {length}: use {nearest}")


def check_stages(
    stages: Sequence[StageOptions], steps: int, global_batch_tokens: int, sequence_length: int, sources: int
) -> None:
    """Raises ValueError, naming the key to change, if stages cannot be those of a run.

    The run has so many steps, tokens in a batch and in a row, and sources.
    """
    begins = stage_begins(stages, steps)
    for index, stage in enumerate(stages):
        key = f"train.stages.{index}"
        batch_key = "train.global_batch_tokens" if stage.global_batch_tokens is None else f"{key}.global_batch_tokens"
        length_key = "data.sequence_length" if stage.sequence_length is None else f"{key}.sequence_length"
        tokens, length = stage.global_batch_tokens or global_batch_tokens, stage.sequence_length or sequence_length
        check_batch(batch_key, tokens, length_key, length)
        if stage.schedule is not None:
            check_schedule(f"{key}.schedule", stage.schedule, f"{key}.steps", begins[index + 1] - begins[index])
        if stage.weights is not None and len(stage.weights) != sources:
            raise ValueError(
                f"{key}.weights are {len(stage.weights)}, but data.sources has {sources} entries: one for each"
            )


def check_warmup(warmup: BatchWarmupOptions, steps: int, first_steps: int, batch: int, length: int) -> None:
    """Raises ValueError, naming the key to change, if a batch cannot grow as `warmup` says.

    steps: of the run, `first_steps` of them in its first stage, whose full batches have `batch` tokens in rows of
    `length`.
    """
    key = "train.batch_warmup"
    check_batch(f"{key}.tokens", warmup.tokens, "the first rows' length", length)
    if batch % warmup.tokens:
        raise ValueError(
            f"{key}.tokens is {warmup.tokens}, of which the full batch of {batch} tokens is no multiple: use a divisor "
            f"of it that is a multiple of {length}"
        )
    if schedule_steps(warmup.steps, steps) > first_steps:
        raise ValueError(f"{key}.steps is {warmup.steps}, beyond the {first_steps} steps of the first stage: lower it")
