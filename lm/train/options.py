"""The run file's `train`, `optimizer`, `deepspeed` and `log` sections."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from lm.errors import did_you_mean
from lm.options import Options
from lm.train.deepspeed_keys import OWNED, PASSED_THROUGH, REFUSED, SECTIONS, ZERO_KEYS


class TrainOptions(Options):
    """How long, how much at once, how exactly, and what is kept on disk."""

    output_dir: Path = Field(description="Folder of the run: checkpoints, metrics, report, final model.")
    steps: int = Field(ge=1, description="Optimizer steps of the whole run.")
    global_batch_tokens: int = Field(
        ge=1, description="Tokens per optimizer step over all ranks; a multiple of data.sequence_length."
    )
    micro_batch_size: int = Field(default=1, ge=1, description="Rows of one forward and backward on one rank.")
    seed: int = Field(default=0, ge=0, description="Seed of the initial weights; data.seed decides the order of rows.")
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="Precision of forward and backward; master weights are fp32 either way."
    )
    attention_backend: Literal["reference", "blocked", "triton", "flash", "flex"] | None = Field(
        default=None,
        description="Kernel of every attention; null takes the fastest that can run, and the environment variable "
        "BRAID_ATTENTION_BACKEND comes before either.",
    )
    scan_backend: Literal["reference", "loop", "triton"] | None = Field(
        default=None,
        description="Kernel of the recurrence in RAT's chunks; null takes the fastest that can run, and the "
        "environment variable BRAID_SCAN_BACKEND comes before either.",
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
    profile: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(), description="Steps whose trace is written into profile/ of the run's folder; see docs/observe.md."
    )

    @model_validator(mode="after")
    def _kernels_have_the_precision(self) -> TrainOptions:
        if self.attention_backend == "flash" and self.precision == "fp32":
            raise ValueError("attention_backend flash has no fp32: set precision to bf16, or take triton")
        return self


class _Warmup(Options):
    warmup_steps: float = Field(
        default=0,
        ge=0,
        description="Steps of linear warm-up from 0; a number below 1 is a fraction of train.steps.",
    )

    @model_validator(mode="after")
    def _whole_steps(self) -> _Warmup:
        for key in ("warmup_steps", "decay_steps"):
            value = getattr(self, key, 0)
            if value >= 1 and value != int(value):
                raise ValueError(f"{key} is {value}: give a whole number of steps, or a fraction of them below 1")
        return self


class ConstantSchedule(_Warmup):
    """Warm-up, then the peak learning rate to the end."""

    kind: Literal["constant"] = Field(default="constant", description="Peak learning rate after the warm-up.")


class LinearSchedule(_Warmup):
    """Warm-up, then a straight line down to `min_lr_ratio` of the peak at the last step."""

    kind: Literal["linear"] = Field(description="Straight decay after the warm-up.")
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1, description="Last learning rate over the peak.")


class CosineSchedule(_Warmup):
    """Warm-up, then half a cosine down to `min_lr_ratio` of the peak at the last step."""

    kind: Literal["cosine"] = Field(description="Half-cosine decay after the warm-up.")
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1, description="Last learning rate over the peak.")


class WsdSchedule(_Warmup):
    """Warm-up, stable at the peak, then a decay over the last `decay_steps` (warmup-stable-decay)."""

    kind: Literal["wsd"] = Field(description="Stable peak between the warm-up and a late decay.")
    decay_steps: float = Field(
        default=0.2, gt=0, description="Steps of the final decay; a number below 1 is a fraction of train.steps."
    )
    decay_shape: Literal["linear", "cosine", "sqrt"] = Field(
        default="sqrt", description="Shape of the decay; sqrt is 1 - sqrt(progress)."
    )
    min_lr_ratio: float = Field(default=0.0, ge=0, le=1, description="Last learning rate over the peak.")


ScheduleOptions = Annotated[
    ConstantSchedule | LinearSchedule | CosineSchedule | WsdSchedule, Field(discriminator="kind")
]


class OptimizerOptions(Options):
    """AdamW and its learning-rate schedule. Norms, biases and embeddings are not decayed."""

    kind: Literal["adamw"] = Field(default="adamw", description="The optimizer.")
    lr: float = Field(gt=0, description="Peak learning rate.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.95), description="Decay rates of the first and second moments."
    )
    eps: float = Field(default=1e-8, gt=0, description="Added to the root of the second moment.")
    weight_decay: float = Field(default=0.1, ge=0, description="Decoupled weight decay of matrices.")
    schedule: ScheduleOptions = Field(
        default=ConstantSchedule(), description="Learning rate as a function of the step."
    )


class DeepSpeedOptions(Options):
    """The ZeRO stage, and any DeepSpeed setting that the run file has no name of its own for."""

    model_config = ConfigDict(extra="allow")

    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=0,
        description="What is sharded over the ranks: 1 optimizer, 2 and gradients, 3 and parameters; bf16 needs the "
        "fp32 gradients of 1 and runs as 1 where 0 is given.",
    )

    @model_validator(mode="after")
    def _passed_through(self) -> DeepSpeedOptions:
        for key, value in self.passed_through.items():
            if key in OWNED:
                raise ValueError(f"'{key}' is set by the trainer: remove it and use {OWNED[key]} instead")
            if key in REFUSED:
                raise ValueError(f"remove '{key}': {REFUSED[key]}")
            if key not in PASSED_THROUGH:
                nearest = did_you_mean(key, ["zero_stage", *sorted(PASSED_THROUGH | OWNED.keys())])
                owner = next((f" (set it by {ours})" for name, ours in OWNED.items() if f"'{name}'" in nearest), "")
                raise ValueError(f"DeepSpeed has no setting '{key}'.{nearest}{owner}")
            if key in SECTIONS and not isinstance(value, dict):
                raise ValueError(f"'{key}' must be a mapping of DeepSpeed's settings, not {value!r}")
        self._check_zero(self.passed_through.get("zero_optimization", {}))
        return self

    def _check_zero(self, zero: dict[str, Any]) -> None:
        if "stage" in zero:
            raise ValueError("remove zero_optimization.stage and use deepspeed.zero_stage instead")
        for key in zero:
            if key not in ZERO_KEYS:
                nearest = did_you_mean(str(key), sorted(ZERO_KEYS))
                raise ValueError(f"DeepSpeed's zero_optimization has no setting '{key}'.{nearest}")
        for key in ("offload_optimizer", "offload_param", "leaf_module", "zenflow"):
            if not isinstance(zero.get(key, {}), dict):
                raise ValueError(f"zero_optimization.{key} must be a mapping, not {zero[key]!r}")
        for key, stage in (("offload_optimizer", 1), ("offload_param", 3)):
            if key in zero and self.zero_stage < stage:
                raise ValueError(
                    f"zero_optimization.{key} needs deepspeed.zero_stage of at least {stage}, not {self.zero_stage}"
                )

    @property
    def passed_through(self) -> dict[str, Any]:
        """The settings handed to DeepSpeed as they are."""
        return dict(self.__pydantic_extra__ or {})


class LogOptions(Options):
    """What is shown while training and where it is kept besides `metrics.jsonl`."""

    wandb: Literal["disabled", "offline", "online"] = Field(
        default="offline", description="Weights & Biases: off, into the run's folder, or sent (needs a login)."
    )
    project: str = Field(default="braid", min_length=1, description="Project of the Weights & Biases run.")
    name: str | None = Field(default=None, description="Name of the run; null takes that of the output folder.")
    every: int = Field(default=1, ge=1, description="Steps between the printed lines when not on a terminal.")


def schedule_steps(value: float, steps: int) -> int:
    """Whole steps that `warmup_steps` or `decay_steps` mean in a run of `steps` (below 1: a fraction of them)."""
    return round(value * steps) if value < 1 else int(value)


def check_run(train: TrainOptions, optimizer: OptimizerOptions, sequence_length: int) -> None:
    """Raise ValueError, naming the key to change, if the sections cannot work together."""
    check_batch("train.global_batch_tokens", train.global_batch_tokens, "data.sequence_length", sequence_length)
    check_schedule("optimizer.schedule", optimizer.schedule, "train.steps", train.steps)


def check_batch(key: str, tokens: int, length_key: str, length: int) -> None:
    """Raise ValueError if a batch of `tokens` is not whole rows of `length`."""
    if tokens % length:
        below = tokens // length * length
        raise ValueError(
            f"{key} is {tokens}, which is not a multiple of {length_key} {length}: use {max(below, length)}"
        )


def check_schedule(key: str, schedule: ScheduleOptions, steps_key: str, steps: int) -> None:
    """Raise ValueError if the parts of a schedule are longer than a run of `steps`."""
    warmup = schedule_steps(schedule.warmup_steps, steps)
    decay = schedule_steps(schedule.decay_steps, steps) if isinstance(schedule, WsdSchedule) else 0
    if warmup + decay > steps:
        keys = "warmup_steps" if not decay else "warmup_steps and decay_steps"
        raise ValueError(
            f"{key}'s {keys} take {warmup + decay} steps, but {steps_key} is {steps}: "
            f"lower them, or give them as fractions below 1"
        )
