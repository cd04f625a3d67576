"""What the guard decides, and that it decides the same again."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.errors import UserError
from lm.train.guard import MAX_SKIPPED_IN_A_ROW, Decision, Guard, Memory, SkippedSteps, spread
from lm.train.guard_options import GuardOptions

CALM = [2.0 + 0.1 * (step % 3) for step in range(20)]


def guard(action: str = "skip", decided: tuple[Decision, ...] = (), **options: object) -> Guard:
    values = {"action": action, "sigma": 6.0, "window": 16, "warmup_steps": 8, **options}
    return Guard(GuardOptions.model_validate(values), decided)


def feed(judge: Guard, losses: list[float], first: int = 1) -> list[str | None]:
    """What is decided about steps that read four rows each."""
    actions: list[str | None] = []
    for step, loss in enumerate(losses, start=first):
        decision = judge.judge(step, (4 * step, 4 * step + 4), loss, 1.0)
        judge.note(step, loss, 1.0, decision)
        if decision is not None:
            judge.decided(decision)
        actions.append(decision and decision.action)
    return actions


@given(st.lists(st.floats(0.1, 1e4), min_size=1, max_size=50))
def test_the_spread_is_that_of_the_numbers(values: list[float]) -> None:
    mean, deviation = spread(tuple(values))
    assert mean == pytest.approx(sum(values) / len(values))
    assert deviation >= 0.01 * mean
    assert deviation >= math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)) * (1 - 1e-9)


def test_a_spike_is_found_where_it_is_and_does_not_widen_the_window() -> None:
    judge = guard()
    assert feed(judge, [*CALM, 9.0, 2.1, 9.0]) == [*[None] * 20, "skip", None, "skip"]
    assert 9.0 not in judge.memory.losses
    assert judge.judge(30, (0, 4), 2.0, 50.0) is not None  # the gradient's norm counts, too
    assert judge.judge(30, (0, 4), 0.1, 1.0) is None  # a fall is no spike


def test_nothing_is_judged_before_there_is_something_to_judge_by() -> None:
    assert feed(guard(), [9.0, 2.0, 2.0, 9.0, 2.0, 2.0, 2.0]) == [None] * 7


def test_a_level_that_stays_is_a_new_level() -> None:
    found = feed(guard(retries=3), [*CALM, *[9.0] * 10, *[9.1] * 10])
    assert found == [*[None] * 20, "skip", "skip", "skip", "accept", *[None] * 16]


def test_steps_that_are_not_finite_are_not_the_guards() -> None:
    judge = guard()
    assert feed(judge, [*CALM, math.nan, math.inf, 2.0]) == [None] * 23
    assert all(math.isfinite(loss) for loss in judge.memory.losses)


def test_what_was_decided_holds_for_the_same_rows_whatever_their_loss_is_now() -> None:
    judge = guard()
    feed(judge, [*CALM, 9.0])
    before = Decision(21, "skip", (84, 88), "loss", 9.0, 2.1, 0.1, (5,))
    again = guard(decided=(before,))
    assert feed(again, [*CALM, 2.0]) == [*[None] * 20, "skip"]
    assert not again.decided(before)


def test_memory_and_decisions_come_back_as_they_were() -> None:
    decision = Decision(21, "rewind", (84, 88), "loss", 9.0, 2.1, 0.1, (5, 6), 12, (48, 88))
    memory = Memory((1.0, 2.0), (3.0,), 1, 21).with_rewind(decision)
    assert Memory.from_json(memory.to_json()) == memory
    assert Decision.from_json(decision.to_json()) == decision
    assert Memory.from_json({}) == Memory()
    assert memory.with_rewind(decision) == memory
    restored = guard("rewind", decided=(decision,))
    restored.restore(Memory())
    assert restored.memory.stepped_over == ((48, 88),)
    assert "rows 84 to 87 of documents 5, 6" in str(decision)
    assert "going back to step 12 and stepping over rows 48 to 87" in str(decision)


def test_a_step_that_spikes_again_with_other_rows_was_rewound_twice() -> None:
    first = Decision(21, "rewind", (84, 88), "loss", 9.0, 2.1, 0.1, (), 12, (48, 88))
    second = Decision(21, "rewind", (124, 128), "loss", 9.0, 2.1, 0.1, (), 12, (88, 128))
    once, twice = Memory().with_rewind(first), Memory().with_rewind(first).with_rewind(second)
    assert once.knows(first)
    assert not once.knows(second)
    assert twice.knows(first)
    assert twice.knows(second)
    earlier = Memory.from_json(twice.to_json() | {"rewinds": [21]})  # as versions wrote it that kept each step once
    assert earlier.with_rewind(first).with_rewind(second) == earlier
    judge = guard("rewind", decided=(first, second), retries=2)
    judge.restore(once)
    assert judge.memory == twice
    with pytest.raises(UserError, match="step 21 spikes after 2 rewinds"):
        judge.require_retries(21)


def test_a_level_that_stays_is_a_new_level_too_where_rewinds_can_go_nowhere() -> None:
    judge = guard("rewind", retries=3)
    feed(judge, CALM)
    for step in (21, 22, 23):
        decision = judge.judge(step, (4 * step, 4 * step + 4), 9.0, 1.0)
        assert decision is not None
        assert decision.action == "rewind"
        judge.note(step, 9.0, 1.0, replace(decision, action="skip", reason="there is no checkpoint"))
    decision = judge.judge(24, (96, 100), 9.0, 1.0)
    assert decision is not None
    assert decision.action == "accept"


def test_rewinds_that_do_not_help_end() -> None:
    judge = guard("rewind", retries=2)
    for step in (21, 25):
        judge.require_retries(step)
        judge.memory = judge.memory.with_rewind(
            Decision(step, "rewind", (step, step + 1), "loss", 9.0, 2.0, 0.1, (), 12, (step, step + 1))
        )
    judge.require_retries(25 + 17)
    with pytest.raises(UserError, match="after 2 rewinds"):
        judge.require_retries(30)


def test_steps_that_are_never_finite_end() -> None:
    skipped = SkippedSteps("optimizer.lr")
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        skipped.note(False)
    skipped.note(True)
    for _ in range(MAX_SKIPPED_IN_A_ROW - 1):
        skipped.note(False)
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        skipped.note(False)
