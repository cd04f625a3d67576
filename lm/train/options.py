"""The run file's `train` and `log` sections."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lm.options import LocalPath, Options
from lm.train.optimizer_options import OptimizerOptions, check_schedule
from lm.train.stage_options import (
    BatchWarmupOptions,
    StageOptions,
    check_batch,
    check_stages,
    check_warmup,
    stage_begins,
)


class ActivationCheckpointing(Options):
    """Which activations are dropped after the forward and computed again in backward; results do not change."""

    kind: Literal["layers", "selective"] = Field(
        default="layers",
        description="layers: a layer keeps its input alone, and its whole forward runs again. selective: it keeps what "
        "its linear layers put out, too, and runs attention, norms, activations and scans again.",
    )
    every: int = Field(default=1, ge=1, description="Every n-th layer, the first one among them; the others keep all.")


class TrainOptions(Options):
    """How long, how much at once, how exactly, and what is kept on disk."""

    output_dir: LocalPath = Field(description="Folder of the run: checkpoints, metrics, report, final model.")
    steps: int = Field(ge=1, description="Optimizer steps of the whole run.")
    global_batch_tokens: int = Field(
        ge=1, description="Tokens per optimizer step over all ranks; a multiple of data.sequence_length."
    )
    micro_batch_size: int = Field(default=1, ge=1, description="Rows of one forward and backward on one rank.")
    sequence_parallel: int = Field(
        default=1,
        ge=1,
        description="Neighbouring ranks that hold each row together, a share of its tokens each; divides the number of "
        "ranks. For rows longer than one rank's memory; see docs/sequence-parallel.md.",
    )
    stages: tuple[StageOptions, ...] = Field(
        default=(),
        description="Parts of the run, in their order, with rows, batch, mix or learning rate of their own.",
    )
    batch_warmup: BatchWarmupOptions | None = Field(
        default=None, description="A batch that grows at the beginning; null: it is full from the first step."
    )
    seed: int = Field(default=0, ge=0, description="Seed of the initial weights; data.seed decides the order of rows.")
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32",
        description="Precision of forward and backward; master weights are fp32 in any case. With fp16 the loss is "
        "scaled up, by less whenever gradients overflow; those steps are skipped and counted.",
    )
    attention_backend: Literal["reference", "blocked", "cpp", "triton", "flash", "flex"] | None = Field(
        default=None,
        description="Kernel of every attention; null takes the fastest that can run, and the environment variable "
        "BRAID_ATTENTION_BACKEND comes before either.",
    )
    scan_backend: Literal["reference", "loop", "cpp", "triton"] | None = Field(
        default=None,
        description="Kernel of the recurrence in RAT's chunks; null takes the fastest that can run, and the "
        "environment variable BRAID_SCAN_BACKEND comes before either.",
    )
    average_decay: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="Decay of an exponential moving average of the weights, kept in fp32 beside them, such as 0.999: "
        "it is evaluated wherever the weights are, and `braid export --average` writes it. Null: none.",
    )
    activation_checkpointing: ActivationCheckpointing | None = Field(
        default=None,
        description="Less memory for more arithmetic; null keeps every activation. The layers of a base are always "
        "recomputed.",
    )
    compile: bool = Field(
        default=False,
        description="Whether norms, residual sums and MLPs run as code that torch.compile makes at the first step; see "
        "docs/optimization.md.",
    )
    gradient_clipping: float | None = Field(
        default=1.0, gt=0, description="Largest global gradient norm; null leaves gradients as they are."
    )
    evaluate_every: int | None = Field(
        default=None, ge=1, description="Steps between held-out evaluations; null evaluates once, at the end."
    )
    evaluate_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Held-out tokens read by an evaluation on the way; null, and the end of the run, read all.",
    )
    checkpoint_every: int | None = Field(
        default=500, ge=1, description="Steps between checkpoints, with one more at the end; null writes that one only."
    )
    sample_tokens: int = Field(
        default=200, ge=0, description="Tokens that the trained model writes for the report; 0 leaves the sample out."
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="How many of the newest checkpoints are kept.")
    keep_every: int | None = Field(
        default=None, ge=1, description="Checkpoints at multiples of so many steps are kept for ever; null keeps none."
    )
    keep_best: bool = Field(
        default=False,
        description="Whether the checkpoint with the lowest held-out loss is kept, of those after which "
        "`evaluate_tokens` were read; needs evaluate_every.",
    )
    asynchronous_checkpoints: bool = Field(
        default=True,
        description="Whether training goes on while a checkpoint is written; false saves the memory of a copy of it.",
    )
    rank_timeout: float | None = Field(
        default=540,
        gt=0,
        description="Seconds that ranks wait for one that does not go on, before all stop and name it; less than the "
        "ten minutes after which NCCL ends them without a name. null waits for ever.",
    )
    profile: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="Steps whose trace is written into profile/ of the run's folder; see docs/observe.md."
    )

    @model_validator(mode="after")
    def _kernels_have_the_precision(self) -> TrainOptions:
        if self.attention_backend == "flash" and self.precision == "fp32":
            raise ValueError("attention_backend flash has no fp32: set precision to bf16 or fp16, or take triton")
        return self

    @model_validator(mode="after")
    def _profiled_steps_come(self) -> TrainOptions:
        if self.profile and max(self.profile) > self.steps:
            raise ValueError(f"profile names step {max(self.profile)}, but steps is {self.steps}")
        return self

    @model_validator(mode="after")
    def _the_best_is_found(self) -> TrainOptions:
        if self.keep_best and self.evaluate_every is None:
            raise ValueError("keep_best finds nothing to compare: set evaluate_every, or leave keep_best out")
        return self


class LogOptions(Options):
    """What is shown while training and where it is kept besides `metrics.jsonl`."""

    wandb: Literal["disabled", "offline", "online"] = Field(
        default="offline", description="Weights & Biases: off, into the run's folder, or sent (needs a login)."
    )
    tensorboard: bool = Field(
        default=False, description="TensorBoard's files, into the run's folder; needs the package tensorboard."
    )
    project: str = Field(default="braid", min_length=1, description="Project of the Weights & Biases run.")
    name: str | None = Field(default=None, description="Name of the run; null takes that of the output folder.")
    every: int = Field(default=1, ge=1, description="Steps between the printed lines when not on a terminal.")


def check_run(train: TrainOptions, optimizer: OptimizerOptions, sequence_length: int, sources: int) -> None:
    """Raise ValueError, naming the key to change, if the sections cannot work together.

    sequence_length, sources: of the run's data.
    """
    check_batch("train.global_batch_tokens", train.global_batch_tokens, "data.sequence_length", sequence_length)
    check_schedule("optimizer.schedule", optimizer.schedule, "train.steps", train.steps)
    lengths = {"data.sequence_length": sequence_length} | {
        f"train.stages.{index}.sequence_length": stage.sequence_length or sequence_length
        for index, stage in enumerate(train.stages)
    }
    key, shortest = min(lengths.items(), key=lambda length: length[1])
    if train.sequence_parallel > shortest:
        raise ValueError(
            f"train.sequence_parallel is {train.sequence_parallel}, more than {key} {shortest}: every rank needs "
            "a token of each row"
        )
    check_stages(train.stages, train.steps, train.global_batch_tokens, sequence_length, sources)
    if train.batch_warmup is not None:
        first = train.stages[0] if train.stages else StageOptions()
        batch, length = first.global_batch_tokens or train.global_batch_tokens, first.sequence_length or sequence_length
        first_steps = stage_begins(train.stages, train.steps)[1]
        check_warmup(train.batch_warmup, train.steps, first_steps, batch, length)
