"""Question answering: gold documents among others, files that are missing or of another form."""

from __future__ import annotations

import json
import re

import pytest

from eval.tasks import TASKS, CannotBuildError, Haystack
from eval.tasks.questions import read_questions
from lm.errors import UserError


@pytest.mark.parametrize("name", ["qa_1", "qa_2"])
def test_the_documents_that_answer_are_among_the_numbered_others(name, counter, haystack) -> None:
    samples = TASKS[name].samples(counter, 5000, 6, 0, haystack)
    assert len({sample.prompt.rpartition("Question: ")[2] for sample in samples}) == 6
    for sample in samples:
        documents = re.findall(r"Document (\d+):\n(.*?)\n\n", sample.prompt, re.DOTALL)
        assert [int(number) for number, _ in documents] == list(range(1, int(sample.meta["size"]) + 1))
        texts = [text for _, text in documents]
        assert len(set(texts)) == len(texts)
        town = re.search(r"town \d+\.\d+(?=\?)", sample.prompt)[0]
        assert sum(f"flag of {town} has the {sample.answers[0]}." in text for text in texts) == 1
        article = town.split(".")[0]
        related = sum(f"flag of {article}." in text for text in texts)
        assert related == min(len(texts), 12 if name == "qa_1" else related)
        assert sample.prompt.endswith("? Answer:")


def test_gold_documents_stand_anywhere(counter, haystack) -> None:
    places = []
    for sample in TASKS["qa_1"].samples(counter, 5000, 20, 0, haystack):
        town = re.search(r"town \d+\.\d+(?=\?)", sample.prompt)[0]
        places.append(sample.prompt.index(f"flag of {town} has") / len(sample.prompt))
    assert min(places) < 0.3
    assert max(places) > 0.7


def test_any_alias_counts_as_nvidia_has_it(counter, haystack) -> None:
    task = TASKS["qa_1"]
    (sample,) = task.samples(counter, 3000, 1, 0, haystack)
    assert len(sample.answers) == 2
    assert task.score(sample.answers[0].upper(), sample) == 1


def test_unanswerable_questions_of_squad_are_left_out(haystack) -> None:
    asked = read_questions(haystack.squad, "squad").asked
    assert len(asked) == 240
    assert all(question.answers for question in asked)


def test_what_is_missing_or_wrong_is_named(counter, haystack, tmp_path) -> None:
    task = TASKS["qa_1"]
    with pytest.raises(CannotBuildError, match=r"qa_1 needs a local copy of dev-v2.0.json: name it under --squad"):
        task.samples(counter, 3000, 1, 0, Haystack("text", "Some text."))
    missing = tmp_path / "missing.json"
    with pytest.raises(UserError, match=r"^--squad: '.*missing.json' cannot be read: No such file"):
        task.samples(counter, 3000, 1, 0, Haystack("text", "Some text.", squad=missing))
    other = tmp_path / "other.json"
    other.write_text(json.dumps([1, 2]))
    with pytest.raises(UserError, match=r"^--squad: '.*other.json' is not of the published form: name dev-v2.0.json"):
        task.samples(counter, 3000, 1, 0, Haystack("text", "Some text.", squad=other))
    lines = tmp_path / "lines.jsonl"
    lines.write_text("1\n2\n")
    with pytest.raises(UserError, match=r"^--squad: '.*lines.jsonl' is not JSON \(Extra .*\): name dev-v2.0.json"):
        task.samples(counter, 3000, 1, 0, Haystack("text", "Some text.", squad=lines))
    with pytest.raises(CannotBuildError, match=r"qa_2 has 0 questions whose own documents fit into 200 tokens"):
        TASKS["qa_2"].samples(counter, 200, 1, 0, haystack)
    with pytest.raises(CannotBuildError, match=r"qa_1 cannot fill 400000 tokens: all of its material has \d+"):
        task.samples(counter, 400_000, 1, 0, haystack)
