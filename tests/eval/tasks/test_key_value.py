"""Records: what is asked for stands there once, at its depth, and can be looked up."""

from __future__ import annotations

import json
import re

from hypothesis import given, settings
from hypothesis import strategies as st

from eval.tasks import Haystack
from eval.tasks.key_value import JsonKv, LineRetrieval

UNUSED = Haystack("unused", "unused")


@settings(deadline=None, max_examples=15)
@given(length=st.integers(1000, 6000), seed=st.integers(0, 2**32))
def test_json_kv_asks_for_pairs_of_its_object_at_six_depths(counter, length, seed) -> None:
    samples = JsonKv().samples(counter, length, 6, seed, UNUSED)
    assert [sample.meta["depth"] for sample in samples] == [0, 0.2, 0.4, 0.6, 0.8, 1]
    for sample in samples:
        record, questions = re.fullmatch(
            r"JSON data:\n(\{.*?\})\n\nExtract [^\n]*\n\n(.*)", sample.prompt, re.DOTALL
        ).groups()
        pairs = json.loads(record)
        assert len(pairs) == sample.meta["size"]
        *shots, (asked, nothing) = re.findall(r"Key: (\S+)\nCorresponding value: ?(\S*)", questions)
        assert len(shots) == 2
        assert all(pairs[key] == value for key, value in shots)
        assert asked not in dict(shots)
        assert (pairs[asked],) == sample.answers
        assert nothing == ""
        assert abs(list(pairs).index(asked) / (len(pairs) - 1) - sample.meta["depth"]) < 1 / (len(pairs) - 1)


@settings(deadline=None, max_examples=15)
@given(length=st.integers(800, 6000), seed=st.integers(0, 2**32))
def test_line_retrieval_asks_for_one_of_its_lines(counter, length, seed) -> None:
    (sample,) = LineRetrieval().samples(counter, length, 1, seed, UNUSED)
    lines = re.findall(r"^line (.+): REGISTER_CONTENT is <(\d+)>$", sample.prompt, re.MULTILINE)
    numbers = dict(lines)
    assert len(numbers) == len(lines) == sample.meta["size"]
    asked = re.search(r"in line (.+)\? I need the number\.\nline (.+): REGISTER_CONTENT is$", sample.prompt)
    assert asked[1] == asked[2]
    assert (numbers[asked[1]],) == sample.answers
    assert LineRetrieval().score(f" <{sample.answers[0]}>", sample) == 1
    assert LineRetrieval().score(f" <{sample.answers[0]}>\nline 7", sample) == (sample.answers[0] == "7")
