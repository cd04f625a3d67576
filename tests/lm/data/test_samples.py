"""Records of every form become the same samples, and what is wrong in one is said with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lm.data.options import ChatOptions, PairsOptions
from lm.data.readers import Part, Unreadable
from lm.data.samples import ANSWER_FIELDS, PROMPT_FIELDS, Sample, read_samples
from lm.errors import UserError

texts = st.text(st.characters(codec="utf-8"), max_size=12)
answers = texts.filter(str.strip)
KEY = "data.sources.3"


def write(path: Path, records: list[Any]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(records))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, records)))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


def pairs(path: Path, **options: str) -> list[Sample | Unreadable]:
    return list(read_samples(Part(path), PairsOptions(kind="sft", path=str(path), **options), KEY))


def chats(path: Path, **options: str) -> list[Sample | Unreadable]:
    return list(read_samples(Part(path), ChatOptions(kind="chat", path=str(path), **options), KEY))


def turns(item: Sample | Unreadable) -> list[tuple[str, str]]:
    assert isinstance(item, Sample), item
    return [(turn.role, turn.text) for turn in item.turns]


@given(
    written=st.lists(st.tuples(texts, answers), min_size=1, max_size=4),
    fields=st.tuples(st.sampled_from(PROMPT_FIELDS), st.sampled_from(ANSWER_FIELDS)),
    suffix=st.sampled_from([".json", ".jsonl", ".parquet"]),
    named=st.booleans(),
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_pair_is_the_same_in_any_form_and_file(
    tmp_path: Path, written: list[tuple[str, str]], fields: tuple[str, str], suffix: str, named: bool
) -> None:
    records = [{"id": 7, **dict(zip(fields, pair, strict=True))} for pair in written]
    options = dict(zip(("prompt_field", "answer_field"), fields, strict=True)) if named else {}
    found = pairs(write(tmp_path / f"a{suffix}", records), **options)
    assert [turns(item) for item in found] == [[("user", prompt), ("assistant", answer)] for prompt, answer in written]


@given(
    prompt=texts,
    conversation=st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), answers), max_size=5),
    suffix=st.sampled_from([".json", ".jsonl", ".parquet"]),
)
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_conversation_keeps_its_turns(
    tmp_path: Path, prompt: str, conversation: list[tuple[str, str]], suffix: str
) -> None:
    said = [("user", prompt), *conversation, ("assistant", "yes")]
    records = [{"messages": [{"role": role, "content": text} for role, text in said]}]
    (item,) = chats(write(tmp_path / f"a{suffix}", records))
    assert turns(item) == said
    assert item.text.encode() == item.utf8


def test_what_follows_the_last_answer_is_left_out(tmp_path: Path) -> None:
    said = [("user", "x"), ("assistant", "y"), ("user", "thanks"), ("system", "bye")]
    records = [{"messages": [{"role": role, "content": text} for role, text in said]}]
    (item,) = chats(write(tmp_path / "a.json", records))
    assert turns(item) == said[:2]


def test_an_input_stands_below_its_instruction(tmp_path: Path) -> None:
    records = [
        {"instruction": "Sum up.", "input": "A text.", "output": "It."},
        {"instruction": "Sum up.", "input": "", "output": "It."},
        {"instruction": "Sum up.", "input": None, "output": "It."},
        {"instruction": "", "input": "A text.", "output": "It."},
    ]
    found = [turns(item)[0][1] for item in pairs(write(tmp_path / "a.json", records))]
    assert found == ["Sum up.\n\nA text.", "Sum up.", "Sum up.", "A text."]
    named = pairs(write(tmp_path / "a.json", records), prompt_field="instruction")
    assert turns(named[0])[0][1] == "Sum up.", "what is named is taken as it is"


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_samples_have_no_more_bytes_than_they_may(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", [{"prompt": "\u00e4" * count, "answer": "yes"} for count in (498, 499, 3000)])
    options = PairsOptions(kind="sft", path=str(path), max_document_bytes=1000)
    fits, *over = read_samples(Part(path), options, KEY)
    if suffix != ".jsonl":  # whose lines have as many bytes more as names and escapes take
        assert isinstance(fits, Sample)
        assert fits.utf8 == b"\xc3\xa4" * 498 + b"\nyes"
    for item in over:
        assert isinstance(item, Unreadable)
        assert item.kind == "too long"


PAIR = {"instruction": "x", "output": "y"}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"instruction": 5, "output": "y"}, "instruction holds int, not text"),
        ({"instruction": "x", "output": None}, "output holds NoneType, not text"),
        ({"instruction": "x", "output": ["y"]}, "output holds list, not text"),
        ({"instruction": "x", "input": 1, "output": "y"}, "input holds int, not text"),
        ({"instruction": "x", "output": ""}, "output is empty"),
        ({"instruction": "x", "output": " \n"}, "output is empty"),
        ({"instruction": "\ud800", "output": "y"}, "half of a surrogate pair"),
        ("x", "not a JSON object"),
    ],
)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_a_malformed_pair_is_named_by_its_record(tmp_path: Path, suffix: str, record: Any, message: str) -> None:
    path = write(tmp_path / f"a{suffix}", [PAIR, record, PAIR])
    first, bad, last = pairs(path)
    assert turns(first) == turns(last)
    assert isinstance(bad, Unreadable)
    assert bad.where.startswith("record 2 (character" if suffix == ".json" else "line 2 (byte")
    assert message in bad.reason
    assert isinstance(last, Sample)
    assert last.where.startswith(f"{'record' if suffix == '.json' else 'line'} 3 (")
    assert last.origin[0] == str(path)


@pytest.mark.parametrize(
    ("record", "options", "message"),
    [
        ({"question": "x", "output": "y"}, {}, r"prompt_field: .*none of the fields instruction, prompt in line 2"),
        ({"instructions": "x", "output": "y"}, {}, r"it has instructions, output\. Did you mean 'instructions'\?"),
        ({"prompt": "x", "text": "y"}, {}, r"answer_field: .*none of the fields output, answer, response, completion"),
        ({"prompt": "x", "instruction": "x", "output": "y"}, {}, r"prompt_field: .*the fields instruction and prompt"),
        (
            {"prompt": "x", "answer": "y", "response": "z"},
            {},
            r"answer_field: .*answer and response in line 2.*set the",
        ),
        ({"question": "x", "output": "y"}, {"prompt_field": "qestion"}, r"no field 'qestion'.*Did you mean 'question'"),
    ],
)
def test_records_of_another_form_are_refused(
    tmp_path: Path, record: dict[str, str], options: dict[str, str], message: str
) -> None:
    good = PAIR | {"qestion": "x"}
    with pytest.raises(UserError, match=rf"data\.sources\.3\..*{message}"):
        pairs(write(tmp_path / "a.jsonl", [good, record]), **options)


USER, ANSWER = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hello", "'messages' holds str, not a list of messages"),
        ([USER, "y"], "message 2 is str"),
        ([USER, {"role": "assistant"}], "message 2 has no 'content'; it has role"),
        ([USER, {"content": "y"}], "message 2 has no 'role'"),
        (
            [USER, {"role": "asistant", "content": "y"}],
            "role 'asistant'; known are system, user, assistant. Did you mean 'a",
        ),
        ([USER, {"role": "assistant", "content": None}], "the content of message 2 holds NoneType"),
        ([USER, {"role": "assistant", "content": "\t"}], "the content of message 2 is empty"),
        ([USER, USER], "no message is the assistant's"),
        ([], "no message is the assistant's"),
        ([ANSWER, USER, ANSWER], "the first message is the assistant's"),
    ],
)
def test_a_malformed_conversation_is_named_by_record_and_message(tmp_path: Path, messages: Any, message: str) -> None:
    (bad, good) = chats(write(tmp_path / "a.jsonl", [{"messages": messages}, {"messages": [USER, ANSWER]}]))
    assert isinstance(bad, Unreadable)
    assert bad.where == "line 1 (byte 0)"
    assert message in bad.reason
    assert isinstance(good, Sample)


def test_conversations_under_another_name_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [{"message": [USER, ANSWER]}])
    with pytest.raises(UserError, match=r"data\.sources\.3\.messages_field: .*Did you mean 'message'"):
        chats(path)
    assert len(chats(path, messages_field="message")) == 1
