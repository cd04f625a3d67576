import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.train.optimizer_options import (
    ConstantSchedule,
    CosineSchedule,
    DampedCosineSchedule,
    LinearSchedule,
    ScheduleOptions,
    WsdSchedule,
    schedule_steps,
)
from lm.train.schedule import learning_rate

PEAK = 3e-3


@st.composite
def runs(draw: st.DrawFn) -> tuple[ScheduleOptions, int]:
    """A schedule that fits a run, and the run's steps."""
    steps = draw(st.integers(1, 300))
    warmup = draw(st.integers(0, steps - 1))
    floor = draw(st.floats(0, 1))
    if draw(st.booleans()):
        decay = draw(st.integers(1, steps - warmup))
        shape = draw(st.sampled_from(["linear", "cosine", "sqrt"]))
        return WsdSchedule(
            kind="wsd", warmup_steps=warmup, decay_steps=decay, decay_shape=shape, min_lr_ratio=floor
        ), steps
    kind = draw(st.sampled_from([LinearSchedule, CosineSchedule]))
    return kind(kind=kind.model_fields["kind"].annotation.__args__[0], warmup_steps=warmup, min_lr_ratio=floor), steps


@given(runs())
@settings(deadline=None)
def test_the_rate_rises_to_the_peak_then_never_rises_again(run: tuple[ScheduleOptions, int]) -> None:
    schedule, steps = run
    rates = [learning_rate(PEAK, schedule, step, steps) for step in range(steps)]
    warmup = schedule_steps(schedule.warmup_steps, steps)
    assert all(0 < rate <= PEAK * (1 + 1e-12) for rate in rates)
    assert rates[warmup] == pytest.approx(PEAK)
    assert all(a < b for a, b in pairwise(rates[:warmup]))
    assert all(a >= b - 1e-15 for a, b in pairwise(rates[warmup:]))


@given(runs())
@settings(deadline=None)
def test_the_decay_would_reach_its_floor_one_step_after_the_last(run: tuple[ScheduleOptions, int]) -> None:
    schedule, steps = run
    assert learning_rate(PEAK, schedule, steps, steps) == pytest.approx(PEAK * schedule.min_lr_ratio, abs=1e-12)


def test_a_stable_phase_lies_between_warmup_and_decay() -> None:
    schedule = WsdSchedule(kind="wsd", warmup_steps=10, decay_steps=20, decay_shape="linear")
    rates = [learning_rate(1.0, schedule, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert set(rates[9:81]) == {1.0}
    assert rates[90] == pytest.approx(0.5)


def test_cosine_is_halfway_in_the_middle() -> None:
    schedule = CosineSchedule(kind="cosine", min_lr_ratio=0.2)
    assert learning_rate(1.0, schedule, 50, 100) == pytest.approx(0.6)


def damped(**values: float) -> list[float]:
    schedule = DampedCosineSchedule.model_validate({"kind": "damped_cosine", "min_lr_ratio": 0.1} | values)
    return [learning_rate(1.0, schedule, step, 100) for step in range(101)]


def test_a_damped_cosine_has_falling_peaks_above_one_valley() -> None:
    rates = damped(cycles=3, damping=1.0)
    peaks = [rates[0], *(b for a, b, c in zip(rates, rates[1:], rates[2:], strict=False) if a < b > c)]
    valleys = [b for a, b, c in zip(rates, rates[1:], rates[2:], strict=False) if a > b < c]
    assert peaks == pytest.approx([0.1 + 0.9 * math.exp(-x) for x in (0, 0.4, 0.8)], abs=0.02)
    assert valleys == pytest.approx([0.1, 0.1], abs=1e-6)
    assert rates[100] == pytest.approx(0.1)


def test_one_cycle_without_damping_is_half_a_cosine() -> None:
    cosine = CosineSchedule(kind="cosine", min_lr_ratio=0.1)
    assert damped(cycles=1, damping=0.0) == pytest.approx(
        [learning_rate(1.0, cosine, step, 100) for step in range(101)]
    )


def test_constant_stays() -> None:
    assert {learning_rate(2.0, ConstantSchedule(), step, 50) for step in range(50)} == {2.0}
