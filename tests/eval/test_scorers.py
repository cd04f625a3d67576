"""Scores of known answers, and the packages that benchmarks score with."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eval.scorers import METRICS, babi_labels, classification, common_subsequence, edit_ratio, rouge_l

ROOMS = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")


@pytest.mark.parametrize(
    ("metric", "prediction", "answers", "score"),
    [
        ("string_match_all", "", ["123"], 0),
        ("string_match_all", "It is 123.", ["123"], 1),
        ("string_match_all", "91234", ["123"], 1),
        ("string_match_all", "the value is ABC", ["abc"], 1),
        ("string_match_all", "the value is abc", ["ABC"], 1),
        ("string_match_all", "456", ["123"], 0),
        ("string_match_all", "1, 2 and 4", ["1", "2", "3", "4"], 0.75),
        ("string_match_all", "one\x07two", ["one\ntwo"], 1),
        ("string_match_part", "in Paris", ["paris", "Paris, France", "the capital"], 1),
        ("string_match_part", "in Rome", ["paris", "Paris, France"], 0),
        ("exact_match", " 123\n", ["123"], 1),
        ("exact_match", "123.", ["123"], 0),
        ("first_word", " Odd, I think", ["odd"], 1),
        ("first_word", "1. even", ["even"], 1),
        ("first_word", "it is odd", ["odd"], 0),
        ("first_word", "", ["odd"], 0),
        ("words_in_order", "a b X d and more", ["a b c d"], 0.75),
        ("words_in_order", "X a b c d", ["a b c d"], 0),
        ("words_in_order", "", ["a b"], 0),
        ("first_integer", " 123. Then 77", ["123"], 1),
        ("first_integer", "77 then 123", ["123"], 0),
        ("first_integer", " 91234", ["123"], 0),
        ("first_integer", "00123", ["123"], 1),
        ("first_integer", "7" * 5000, ["123"], 0),
        ("first_integer", "", ["123"], 0),
        ("last_integer", "line 7 holds 123.", ["123"], 1),
        ("last_integer", "123 stands in line 7", ["123"], 0),
        ("last_integer", "none", ["123"], 0),
        ("substring_exact_match", "The answer: it's A-B c!", ["a ab, C"], 1),
        ("substring_exact_match", "The answer", ["another"], 0),
        ("f1", "the cat sat", ["cat sat down"], 0.8),
        ("f1", "cat cat", ["cat"], 2 / 3),
        ("f1", "dog", ["cat", "a dog"], 1),
        ("f1", "", ["cat"], 0),
        ("rouge_l", "", ["cat"], 0),
        ("rouge_l", "...", ["cat"], 0),
        ("rouge_l", "the cat sat", ["the cat sat"], 1),
        ("rouge_l", "the cat", ["the cat sat down"], 2 / 3),
        ("rouge_l", "dog", ["cat"], 0),
        ("integer_share", "15", ["Paragraph 15"], 1),
        ("integer_share", "Paragraph 15 or 16", ["Paragraph 15"], 0.5),
        ("integer_share", "015", ["15"], 0),
        ("integer_share", "fifteen", ["15"], 0),
        ("code_similarity", "\n```python\n# sum\ntotal = 0\nx", ["total = 0"], 1),
        ("code_similarity", "// nothing", ["total = 0"], 0),
        ("code_similarity", "abcd", ["abxd"], 0.75),
    ],
)
def test_known_answers(metric: str, prediction: str, answers: list[str], score: float) -> None:
    assert METRICS[metric](prediction, answers) == pytest.approx(score, abs=1e-7)


@pytest.mark.parametrize(
    ("prediction", "question", "score"),
    [
        ("The garden.", "Where is Mary?", 1),
        ("GARDEN", "Where is Mary?", 1),
        ("bathroom, bedroom, garden, hallway, kitchen, office", "Where is Mary?", 0),
        ("the garden. Then the kitchen.", "Where is Mary?", 1),
        ("before the kitchen the apple was in the garden", "Where was the apple before the kitchen?", 1),
        ("garden\nQuestion: is it the office?", "Where is Mary?", 1),
        ("garden <example> office", "Where is Mary?", 1),
        ("office", "Where is Mary?", 0),
        ("", "Where is Mary?", 0),
    ],
)
def test_babilong_wants_one_label_alone(prediction: str, question: str, score: float) -> None:
    assert babi_labels(prediction, ["garden"], question, ROOMS) == score


@pytest.mark.parametrize(
    ("prediction", "score"),
    [("Type: Sport event", 1), ("Sport event or Food", 0.5), ("Sport", 0), ("", 0), ("Event other", 0)],
)
def test_classes_that_are_part_of_the_right_one_do_not_count(prediction: str, score: float) -> None:
    assert classification(prediction, ["Sport event"], ["Sport event", "Sport", "Food", "Event other"]) == score


@pytest.mark.parametrize(
    ("a", "b", "ratio"),
    [("this is a test", "this is a test!", 97), ("", "", 100), ("", "a", 0), ("abcd", "abcd", 100), ("ab", "ba", 50)],
)
def test_known_edit_ratios(a: str, b: str, ratio: int) -> None:
    assert edit_ratio(a, b) == edit_ratio(b, a) == ratio


TEXT = st.text("abc.", max_size=30)
WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "B", ".", ".."]), max_size=40).map(" ".join)


@given(a=TEXT, b=TEXT)
def test_edit_ratio_is_twice_the_longest_common_subsequence_over_both_lengths(a: str, b: str) -> None:
    matched = len(common_subsequence(a, b))
    assert edit_ratio(a, b) == (round(200 * matched / (len(a) + len(b))) if a or b else 100)


@given(a=TEXT, b=TEXT)
def test_a_common_subsequence_is_one_of_both(a: str, b: str) -> None:
    found = common_subsequence(a, b)
    for text in (a, b):
        letters = iter(text)
        assert all(letter in letters for letter in found)


@settings(deadline=None)
@given(prediction=WORDS, answer=WORDS)
@example(prediction="a b. c a b d. a", answer="b a c. d b a c. . b")
def test_rouge_l_is_that_of_the_package(prediction: str, answer: str) -> None:
    package = pytest.importorskip("rouge").Rouge()
    try:
        expected = package.get_scores([prediction], [answer], avg=True)["rouge-l"]["f"]
    except ValueError:
        expected = 0.0
    assert rouge_l(prediction, [answer]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("metric", METRICS)
@given(prediction=st.text(max_size=40))
def test_every_prediction_has_a_score(metric: str, prediction: str) -> None:
    assert 0 <= METRICS[metric](prediction, ["12 ab"]) <= 1
