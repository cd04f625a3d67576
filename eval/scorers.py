"""The benchmarks' own scores of one prediction, from 0 to 1: pure functions of strings."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Metric = Callable[[str, Sequence[str]], float]
"""A prediction and its references to a score from 0 to 1."""


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction, without white space around it, is one of the answers to the letter."""
    return float(prediction.strip() in answers)


def first_integer(prediction: str, answers: Sequence[str]) -> float:
    """1 if the first run of digits is, as a number, one of the answers (Landmark's and InfiniteBench's passkey)."""
    numbers = re.findall(r"\d+", prediction)
    return float(bool(numbers) and int(numbers[0]) in {int(answer) for answer in answers})


def last_integer(prediction: str, answers: Sequence[str]) -> float:
    """1 if the last run of digits is, as a number, one of the answers (LongChat's line retrieval)."""
    numbers = re.findall(r"\d+", prediction)
    return float(bool(numbers) and int(numbers[-1]) in {int(answer) for answer in answers})


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "first_integer": first_integer,
    "last_integer": last_integer,
}
