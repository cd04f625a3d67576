"""Local texts: where they come from, how they are cut."""

from __future__ import annotations

import sys
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.options import EvaluationOptions, LiveOptions
from eval.tasks import Haystack, open_haystack
from lm.errors import UserError

WORDS = st.lists(st.text("ab.?!XY1", min_size=1, max_size=6), min_size=1, max_size=40)


@given(words=WORDS, count=st.integers(0, 150))
def test_the_beginning_has_as_many_words_as_asked_and_the_text_starts_over(words, count) -> None:
    haystack = Haystack("text", "\n ".join(words))
    assert " ".join(haystack.beginning(count)).split() == list(islice(cycle(words), count))


def test_sentences_end_at_marks_that_a_capital_follows() -> None:
    haystack = Haystack("text", 'One, e.g. this. Is it? 2 is!\n\n(Three) ends.  four does not. "Five" begins.')
    assert haystack.sentences == (
        "One, e.g. this.",
        "Is it?",
        "2 is!",
        "(Three) ends. four does not.",
        '"Five" begins.',
    )


def test_the_default_is_the_documentation_of_the_running_python() -> None:
    haystack = open_haystack()
    assert haystack.name == "python-{}.{}.{}-topics".format(*sys.version_info[:3])
    assert len(haystack.words) > 50_000
    assert haystack.digest == open_haystack().digest != Haystack("other", "text").digest
    assert "\n******" not in haystack.text


def test_a_file_or_a_folder_gives_its_text(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("The second.")
    (tmp_path / "a.md").write_text("The first.")
    assert opened(tmp_path / "b.txt").text == "The second."
    assert opened(tmp_path).text == "The first.\n\nThe second."
    (tmp_path / "c.jsonl").write_text('{"body": "The third."}')
    assert opened(tmp_path / "c.jsonl", text_field="body").text == "The third."


def test_a_text_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n ")
    (tmp_path / "bad.jsonl").write_text("rubbish")
    (tmp_path / "other.jsonl").write_text('{"texts": "here"}')
    for name, option, said in (
        ("nothing.txt", "haystack", "'.*nothing.txt' does not exist"),
        ("blank.txt", "haystack", "'.*blank.txt' holds no words"),
        ("bad.jsonl", "haystack", "'.*bad.jsonl' cannot be read at line 1 .* Repair the file, or name another"),
        ("other.jsonl", "text.field", "'.*other.jsonl' has no field 'text' .*Did you mean 'texts'"),
    ):
        with pytest.raises(UserError, match=f"^--{option}: {said}"):
            opened(tmp_path / name)
        live = LiveOptions(haystack=tmp_path / name, tasks=["copy"], lengths=[8], every=1)
        with pytest.raises(UserError, match=rf"^evaluations\.{option}: {said}"):
            open_haystack(live)


def opened(path: Path, **more: Any) -> Haystack:
    return open_haystack(EvaluationOptions(haystack=path, **more))
