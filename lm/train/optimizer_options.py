"""The run file's `optimizer` section: the optimizer and its learning rate over the run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from lm.options import Options


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


class DampedCosineSchedule(_Warmup):
    """Warm-up, then a cosine that goes down and up again, each time less high."""

    kind: Literal["damped_cosine"] = Field(description="Cosine cycles below a falling peak.")
    cycles: int = Field(default=3, ge=1, description="Peaks, the first one at the end of the warm-up among them.")
    damping: float = Field(
        default=2.0, ge=0, description="The peak falls by exp(-damping) over the run; 0 keeps all peaks equally high."
    )
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1, description="Learning rate of every valley over the peak.")


ScheduleOptions = Annotated[
    ConstantSchedule | LinearSchedule | CosineSchedule | DampedCosineSchedule | WsdSchedule,
    Field(discriminator="kind"),
]


class OptimizerOptions(Options):
    """The optimizer and its learning-rate schedule. Norms, biases and embeddings are not decayed."""

    kind: Literal["adamw", "muon"] = Field(
        default="adamw",
        description="muon: orthogonalised momentum for the matrices of linear layers, and AdamW for embeddings, head, "
        "norms, biases and the rest. Its updates are as large as AdamW's, so learning rates carry over.",
    )
    lr: float = Field(gt=0, description="Peak learning rate.")
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = Field(
        default=(0.9, 0.95), description="Decay rates of the first and second moments."
    )
    eps: float = Field(default=1e-8, gt=0, description="Added to the root of the second moment.")
    momentum: float = Field(default=0.95, ge=0, lt=1, description="Decay rate of Muon's momentum; of kind muon alone.")
    weight_decay: float = Field(default=0.1, ge=0, description="Decoupled weight decay of matrices.")
    base_width: int | None = Field(
        default=None,
        ge=1,
        description="model.hidden_size at which learning rate and initializer_range were tuned: they are carried over "
        "to this model's by the maximal update parametrisation. Null: they are this model's own.",
    )
    schedule: ScheduleOptions = Field(
        default=ConstantSchedule(), description="Learning rate as a function of the step."
    )


def schedule_steps(value: float, steps: int) -> int:
    """Whole steps that `warmup_steps` or `decay_steps` mean in a run of `steps` (below 1: a fraction of them)."""
    return round(value * steps) if value < 1 else int(value)


def decay_steps(schedule: WsdSchedule, steps: int) -> int:
    """Whole steps of its decay; fractions that fill a run with the warm-up do so however they are rounded."""
    decay = schedule_steps(schedule.decay_steps, steps)
    if schedule.warmup_steps < 1 and schedule.decay_steps < 1 and schedule.warmup_steps + schedule.decay_steps <= 1:
        return min(decay, steps - schedule_steps(schedule.warmup_steps, steps))
    return decay


def check_schedule(key: str, schedule: ScheduleOptions, steps_key: str, steps: int) -> None:
    """Raise ValueError if the parts of a schedule are longer than a run of `steps`."""
    warmup = schedule_steps(schedule.warmup_steps, steps)
    decay = decay_steps(schedule, steps) if isinstance(schedule, WsdSchedule) else 0
    if warmup + decay > steps:
        keys = "warmup_steps" if not decay else "warmup_steps and decay_steps"
        raise ValueError(
            f"{key}'s {keys} take {warmup + decay} steps, but {steps_key} is {steps}: "
            f"lower them, or give them as fractions below 1"
        )
