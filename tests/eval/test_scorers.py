"""Scores of known answers."""

from __future__ import annotations

import pytest

from eval.scorers import METRICS


@pytest.mark.parametrize(
    ("metric", "prediction", "answers", "score"),
    [
        ("first_integer", " 123. Then 77", ["123"], 1),
        ("first_integer", "77 then 123", ["123"], 0),
        ("first_integer", " 91234", ["123"], 0),
        ("first_integer", "00123", ["123"], 1),
        ("first_integer", "", ["123"], 0),
        ("last_integer", "line 7 holds 123.", ["123"], 1),
        ("last_integer", "123 stands in line 7", ["123"], 0),
        ("last_integer", "none", ["123"], 0),
        ("exact_match", " 123\n", ["123"], 1),
        ("exact_match", "123.", ["123"], 0),
    ],
)
def test_known_answers(metric: str, prediction: str, answers: list[str], score: float) -> None:
    assert METRICS[metric](prediction, answers) == pytest.approx(score)
