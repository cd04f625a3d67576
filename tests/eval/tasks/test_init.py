"""What holds for every task of the suite: honest lengths, answers that can be had, the same samples everywhere."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, replace
from statistics import mean

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eval.tasks import SUITES, TASKS, CannotBuildError, Haystack, Sample, find_tasks
from lm.errors import UserError

ROOMY = 3000
"""A length at which every task can be built with bytes for tokens."""
COARSE = {"niah_multikey_3", "qa_1", "qa_2"}
"""Tasks whose units may have a tenth of the tokens here."""
GUESSED = {"parity": 0.5, "babilong_qa1": 1 / 6, "babilong_qa2": 1 / 6, "babilong_qa3": 1 / 6}
TEXT = (
    "A plain text of one hundred sentences or so. " * 20 + "It says nothing that anyone could ask for, does it? " * 80
)

every_task = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


def spoken(sample: Sample) -> str:
    """What a model that knows everything would say."""
    return " " + ", ".join(sample.answers)


@every_task
@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(length=st.integers(64, ROOMY), seed=st.integers(0, 2**32))
def test_a_sample_fits_and_can_be_answered_or_is_refused_by_name(task, counter, haystack, length, seed) -> None:
    samples, refusal = [], ""
    try:
        samples = task.samples(counter, length, 2, seed, haystack)
    except CannotBuildError as error:
        refusal = str(error)
    assert len({sample.id for sample in samples}) == 2 or task.name in refusal
    for sample in samples:
        tokens = len(counter.encode(sample.prompt))
        assert tokens == sample.meta["tokens"]
        assert tokens + sample.max_new_tokens <= length == sample.length
        assert sample.answers
        assert task.score(spoken(sample).replace(",", "") if task.name == "copy" else spoken(sample), sample) == 1
        assert task.score("", sample) == 0
        assert task.score(" ???", sample) == 0


@every_task
def test_a_sample_fills_its_length(task, counter, haystack) -> None:
    for sample in task.samples(counter, ROOMY, 5, 0, haystack):
        assert (
            len(counter.encode(sample.prompt)) + sample.max_new_tokens >= (0.8 if task.name in COARSE else 0.95) * ROOMY
        )


@every_task
def test_someone_elses_answer_scores_about_chance(task, counter, haystack) -> None:
    samples = task.samples(counter, ROOMY, 30, 0, haystack)
    wrong = mean(
        task.score(spoken(other), sample) for sample, other in zip(samples, samples[1:] + samples[:1], strict=True)
    )
    assert abs(wrong - GUESSED.get(task.name, 0)) < (0.3 if task.name in GUESSED else 0.1)


@every_task
def test_more_samples_begin_with_the_same(task, counter, haystack) -> None:
    assert task.samples(counter, ROOMY, 4, 1, haystack)[:2] == task.samples(counter, ROOMY, 2, 1, haystack)


@every_task
def test_a_task_names_the_texts_that_its_samples_depend_on(task, haystack) -> None:
    other = replace(haystack, text=TEXT)
    changes = task.samples(_Bytes(), ROOMY, 2, 5, haystack) != task.samples(_Bytes(), ROOMY, 2, 5, other)
    assert changes == ("haystack" in task.texts)
    for name in ("squad", "hotpotqa"):
        try:
            task.samples(_Bytes(), ROOMY, 1, 5, replace(haystack, **{name: None}))
        except CannotBuildError:
            assert name in task.texts
        else:
            assert name not in task.texts


def digest(names: Iterable[str]) -> str:
    """Of all samples that the text alone makes, whatever the order in which tasks are built."""
    made = {}
    for name in names:
        samples = TASKS[name].samples(_Bytes(), ROOMY, 3, 5, Haystack("text", TEXT))
        made[name] = [asdict(sample) for sample in samples]
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


class _Bytes:
    def encode(self, text: str) -> list[int]:
        return list(text.encode())


OFFLINE = [name for name in TASKS if not name.startswith("qa_")]


@pytest.mark.launch
def test_another_process_in_another_order_makes_the_same_samples() -> None:
    code = "import json, sys, test_init; print(test_init.digest(reversed(test_init.OFFLINE)))"
    folder = os.path.dirname(__file__)
    paths = os.pathsep.join([folder, os.path.join(folder, "..", "..", "..")])
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": paths}
    output = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == digest(OFFLINE)


def test_samples_are_those_that_earlier_results_were_made_of() -> None:
    """A change of any sample makes old and new scores incomparable: put the new digest here only if that is meant."""
    assert digest(OFFLINE) == "cbd6233f40f0da594a60e9c1558087ec6a0667dc9de7b92fe2b1b60af4ab124b"


def test_names_and_suites_find_tasks_once_and_in_order() -> None:
    assert [task.name for task in find_tasks(["vt", "niah-single", "niah_single_2"])] == [
        "vt",
        "niah_single_1",
        "niah_single_2",
        "niah_single_3",
    ]
    assert len(SUITES["ruler"]) == 13
    assert set(SUITES["all"]) == set(TASKS) == {name for suite in SUITES.values() for name in suite}
    with pytest.raises(UserError, match=r"'niah_singel_1' is no task .* Did you mean 'niah_single_1'\?"):
        find_tasks(["niah_singel_1"])
