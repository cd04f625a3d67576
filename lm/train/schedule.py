"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math

from lm.train.optimizer_options import (
    ConstantSchedule,
    CosineSchedule,
    DampedCosineSchedule,
    LinearSchedule,
    ScheduleOptions,
    WsdSchedule,
    decay_steps,
    schedule_steps,
)


def learning_rate(peak: float, schedule: ScheduleOptions, step: int, steps: int) -> float:
    """Learning rate of optimizer step `step` (0 <= step < steps).

    Warm-up over w steps uses peak * (step + 1) / w, so no step is wasted at 0 and step w is the first at the peak.
    A decay over d steps begins at the peak and would reach `min_lr_ratio` of it at step `steps`, the one after the
    last, so no step is wasted there either.
    """
    warmup = schedule_steps(schedule.warmup_steps, steps)
    if step < warmup:
        return peak * (step + 1) / warmup
    match schedule:
        case ConstantSchedule():
            return peak
        case LinearSchedule(min_lr_ratio=floor):
            return peak * _between(1 - _progress(step, warmup, steps), floor)
        case CosineSchedule(min_lr_ratio=floor):
            return peak * _between(_cosine(_progress(step, warmup, steps)), floor)
        case DampedCosineSchedule(min_lr_ratio=floor, cycles=cycles, damping=damping):
            # (P + V) / 2 + (P - V) / 2 cos(pi (2 n - 1) p), with a falling peak P and a constant valley V.
            done = _progress(step, warmup, steps)
            return peak * _between(math.exp(-damping * done) * _cosine((2 * cycles - 1) * done), floor)
        case WsdSchedule(min_lr_ratio=floor, decay_shape=shape):
            done = _progress(step, steps - decay_steps(schedule, steps), steps)
            left = {"linear": 1 - done, "cosine": _cosine(done), "sqrt": 1 - math.sqrt(done)}[shape]
            return peak * _between(left, floor)


def _progress(step: int, begin: int, end: int) -> float:
    """How much of a decay from `begin` to `end` is done at `step`: 0 before it, below 1 at the last step."""
    return max(0, step - begin) / max(1, end - begin)


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _between(left: float, floor: float) -> float:
    return floor + (1 - floor) * left
