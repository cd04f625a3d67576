"""The benchmarks' own scores of one prediction, from 0 to 1: pure functions of strings.

Where an answer has several references, the best one counts, unless a benchmark says otherwise.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

Metric = Callable[[str, Sequence[str]], float]
"""A prediction and its references to a score from 0 to 1."""

_CONTROL = re.compile(r"[\x00-\x1f]")


def string_match_all(prediction: str, answers: Sequence[str]) -> float:
    """RULER: the share of the references that the prediction contains, whatever the case. There is no other
    normalisation, so 123 is found in 91234."""
    return _found(prediction, answers) / len(answers)


def string_match_part(prediction: str, answers: Sequence[str]) -> float:
    """RULER's question answering: 1 if the prediction contains any of the references, whatever the case."""
    return float(_found(prediction, answers) > 0)


def _found(prediction: str, answers: Sequence[str]) -> int:
    text = _CONTROL.sub("\n", prediction.strip()).strip().lower()
    return sum(answer.lower() in text for answer in answers)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction, without white space around it, is one of the answers to the letter."""
    return float(prediction.strip() in answers)


def first_word(prediction: str, answers: Sequence[str]) -> float:
    """1 if the first run of letters is one of the answers, whatever the case."""
    words = re.findall(r"[^\W\d_]+", prediction)
    return float(bool(words) and words[0].lower() in {answer.lower() for answer in answers})


def words_in_order(prediction: str, answers: Sequence[str]) -> float:
    """The share of the answer's words that stand at their own place in the prediction, whatever the case."""
    said = prediction.lower().split()
    return max(
        sum(a == b for a, b in zip(said, words, strict=False)) / len(words)
        for words in (answer.lower().split() for answer in answers)
    )


def first_integer(prediction: str, answers: Sequence[str]) -> float:
    """1 if the first run of digits is, as a number, one of the answers (Landmark's and InfiniteBench's passkey)."""
    return _integer_match(_integers(prediction)[:1], answers)


def last_integer(prediction: str, answers: Sequence[str]) -> float:
    """1 if the last run of digits is, as a number, one of the answers (LongChat's line retrieval)."""
    return _integer_match(_integers(prediction)[-1:], answers)


def _integers(text: str) -> list[str]:
    return re.findall(r"\d+", text)


def _integer_match(said: list[str], answers: Sequence[str]) -> float:
    """As numbers, but without `int`, which refuses what has more than 4,300 digits."""
    return float(any(number.lstrip("0") in {answer.lstrip("0") for answer in answers} for number in said))


def babi_labels(prediction: str, answers: Sequence[str], question: str, labels: Iterable[str]) -> float:
    """BABILong: 1 if the answer is the only one of the task's labels in the first sentence of the prediction, those of
    the question left aside. What follows a new context, example or question is not read."""
    said = re.split(r"\.|<context>|<example>|question", prediction.lower(), maxsplit=1)[0]
    named = {label.lower() for label in labels if label.lower() in said and label.lower() not in question.lower()}
    return float(any(named == {answer.lower()} for answer in answers))


def normalized(text: str) -> str:
    """SQuAD's form of an answer: small letters, no punctuation, no articles, single spaces."""
    bare = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def substring_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """HELMET: 1 if the prediction contains one of the answers, both in SQuAD's form."""
    return float(any(normalized(answer) in normalized(prediction) for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD's and LongBench's F1 of the words that prediction and answer share in SQuAD's form."""
    return max(token_f1(normalized(prediction).split(), normalized(answer).split()) for answer in answers)


def token_f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    """Harmonic mean of precision and recall of two bags of tokens."""
    shared = (Counter(prediction) & Counter(answer)).total()
    return 2 * shared / (len(prediction) + len(answer)) if shared else 0.0


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """ROUGE-L F as LongBench has it from the package `rouge` 1.0.1, which counts different words, not words.

    Texts are cut at full stops. For each sentence of the answer the words of its longest common subsequences with the
    prediction's sentences are united; their number over that of the answer's (prediction's) different words is recall
    (precision). Nothing is stemmed, small and capital letters differ, and a text without a sentence scores 0.
    """
    return max(_rouge_l(prediction, answer) for answer in answers)


def _rouge_l(prediction: str, answer: str) -> float:
    said, asked = _rouge_sentences(prediction), _rouge_sentences(answer)
    if not said or not asked:
        return 0.0
    shared = {word for a in asked for b in said for word in common_subsequence(a, b)}
    precision = len(shared) / len({word for sentence in said for word in sentence})
    recall = len(shared) / len({word for sentence in asked for word in sentence})
    return 2 * precision * recall / (precision + recall + 1e-8)


def _rouge_sentences(text: str) -> list[list[str]]:
    return [" ".join(sentence.split()).split(" ") for sentence in text.split(".") if sentence]


def common_subsequence(a: Sequence[str], b: Sequence[str]) -> list[str]:
    """A longest common subsequence; of several, the one that a walk back from both ends finds by leaving out words of
    `b` first."""
    lengths = [[0] * (len(b) + 1)]
    for word in a:
        row = [0]
        for j, other in enumerate(b):
            row.append(lengths[-1][j] + 1 if word == other else max(lengths[-1][j + 1], row[j]))
        lengths.append(row)
    i, j, found = len(a), len(b), []
    while i and j:
        if a[i - 1] == b[j - 1]:
            i, j = i - 1, j - 1
            found.append(a[i])
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def classification(prediction: str, answers: Sequence[str], classes: Sequence[str]) -> float:
    """LongBench: 1/n if the answer is among the n classes that the prediction contains, those left aside that are
    only part of the answer's name."""

    def score(answer: str) -> float:
        named = [name for name in classes if name in prediction and (name == answer or name not in answer)]
        return 1 / len(named) if answer in named else 0.0

    return max(map(score, answers))


def integer_share(prediction: str, answers: Sequence[str]) -> float:
    """LongBench's retrieval and count: the share of the prediction's integers that equal the answer's first, digit by
    digit (`Paragraph 15` is 15)."""
    said = _integers(prediction)
    golds = [_integers(answer)[0] for answer in answers]
    return max(said.count(gold) for gold in golds) / len(said) if said else 0.0


def code_similarity(prediction: str, answers: Sequence[str]) -> float:
    """LongBench's code completion: `edit_ratio` of the first line without a backtick, `#` or `//`."""
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if not any(mark in line for mark in ("`", "#", "//"))), "")
    return max(edit_ratio(line, answer) for answer in answers) / 100


def edit_ratio(a: str, b: str) -> int:
    """`fuzz.ratio` over python-Levenshtein or RapidFuzz: 100 * 2M / T, rounded, M the longest common subsequence and T
    the length of both strings; that is one minus the insertions and deletions from `a` to `b` over T. Without those
    packages fuzzywuzzy falls back on difflib, whose matching blocks may find less than M.
    """
    total = len(a) + len(b)
    return round(100 * 2 * _subsequence_length(a, b) / total) if total else 100


def _subsequence_length(a: str, b: str) -> int:
    """Bit-parallel (Hyyrö 2004): a zero in `row` at each place of `a` where the length grows."""
    places: dict[str, int] = {}
    for place, character in enumerate(a):
        places[character] = places.get(character, 0) | 1 << place
    every = (1 << len(a)) - 1
    row = every
    for character in b:
        matched = row & places.get(character, 0)
        row = (row + matched | row - matched) & every
    return len(a) - row.bit_count()


METRICS: dict[str, Metric] = {
    metric.__name__: metric
    for metric in (
        string_match_all,
        string_match_part,
        exact_match,
        first_word,
        words_in_order,
        first_integer,
        last_integer,
        substring_exact_match,
        f1,
        rouge_l,
        integer_share,
        code_similarity,
    )
}
"""Scores that need nothing but the prediction and its references."""
