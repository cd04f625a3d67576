"""Samples for supervised fine-tuning: what stands in a record as turns of a conversation, answers marked.

Prompts with answers come in the field names that are in use (LongAlpaca and Alpaca: instruction, input, output), and
conversations as lists of messages. A record of another form is refused: that is a wrong `kind` or field name, not a bad
file. What is wrong inside a record makes it unreadable, as `lm.data.sources` treats that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from lm.data.compression import kind_of
from lm.data.kinds import RECORDS
from lm.data.options import ChatOptions, PairsOptions, SamplesOptions
from lm.data.readers import Document, Part, Record, Unreadable, Wanted, missing_field, too_long
from lm.errors import UserError, did_you_mean

Role = Literal["system", "user", "assistant"]
PROMPT_FIELDS = ("instruction", "prompt")
ANSWER_FIELDS = ("output", "answer", "response", "completion")


@dataclass(frozen=True)
class Turn:
    """One message."""

    role: Role
    text: str

    @property
    def is_answer(self) -> bool:
        """Whether it is learned."""
        return self.role == "assistant"


@dataclass(frozen=True)
class Sample(Document):
    """A conversation that ends with an answer; no answer is empty, and there is a prompt before the first.

    text: all turns, one under another, for what asks no more of a document than that. where: it stands in its file, in
    words.
    """

    turns: tuple[Turn, ...]
    where: str


def read_samples(part: Part, options: SamplesOptions, key: str) -> Iterator[Sample | Unreadable]:
    """The samples of a file. Raises UserError, naming a key below `key`, for a record of another form."""
    records = RECORDS[kind_of(part.path)](part, Wanted(max_bytes=options.max_document_bytes))
    yield from samples_of(records, options, key)


def samples_of(
    records: Iterable[Record | Unreadable], options: SamplesOptions, key: str
) -> Iterator[Sample | Unreadable]:
    """The sample of each record, as `read_samples` has it."""
    for record in records:
        if isinstance(record, Unreadable):
            yield record
            continue
        path, where = record.path, record.where
        try:
            turns = _messages(record, options, key) if isinstance(options, ChatOptions) else _pair(record, options, key)
            text = "\n".join(turn.text for turn in turns)
            utf8 = text.encode()
            if len(utf8) > options.max_document_bytes:
                yield too_long(path, where, "the text", options.max_document_bytes)
            else:
                yield Sample(text, utf8, tuple(turns), where, origin=(str(path), record.at))
        except UnicodeEncodeError:
            yield Unreadable(path, where, "half of a surrogate pair in its text", "not UTF-8")
        except MalformedError as error:
            yield Unreadable(path, where, str(error), "malformed")
        except UserError as error:
            if options.bad_records != "skip":
                raise
            yield Unreadable(path, where, str(error), "missing field")


class MalformedError(Exception):
    """What is wrong inside a record of the right form, in words."""


def _pair(record: Record, options: PairsOptions, key: str) -> list[Turn]:
    prompt_field = _field(record, options.prompt_field, PROMPT_FIELDS, f"{key}.prompt_field")
    answer_field = _field(record, options.answer_field, ANSWER_FIELDS, f"{key}.answer_field")
    prompt = _text(record.values[prompt_field], prompt_field)
    if options.prompt_field is None and prompt_field == "instruction" and record.values.get("input") is not None:
        prompt = "\n\n".join(part for part in (prompt, _text(record.values["input"], "input")) if part)
    return [Turn("user", prompt), _answer(record.values[answer_field], answer_field)]


def _field(record: Record, named: str | None, usual: Sequence[str], key: str) -> str:
    """The field of a record that `key` names or, where that is left out, the one of the usual names that it has."""
    found = [name for name in ((named,) if named else usual) if name in record.values]
    if len(found) > 1:
        raise UserError(
            f"{key}: '{record.path}' has the fields {' and '.join(found)} in {record.where}: set the key to one of them"
        )
    if found:
        return found[0]
    if named:
        raise missing_field(record, named, key)
    near = next(filter(None, (did_you_mean(name, record.values) for name in usual)), "")
    raise UserError(
        f"{key}: '{record.path}' has none of the fields {', '.join(usual)} in {record.where}; "
        f"it has {', '.join(record.values) or 'none'}.{near}"
    )


def _messages(record: Record, options: ChatOptions, key: str) -> list[Turn]:
    name = options.messages_field
    if name not in record.values:
        raise missing_field(record, name, f"{key}.messages_field")
    messages = record.values[name]
    if not isinstance(messages, list):
        raise MalformedError(f"'{name}' holds {type(messages).__name__}, not a list of messages")
    turns = [_turn(message, number) for number, message in enumerate(messages, 1)]
    if not any(turn.is_answer for turn in turns):
        raise MalformedError("no message is the assistant's, so there is nothing to learn")
    if turns[0].is_answer:
        raise MalformedError("the first message is the assistant's, an answer to nothing")
    last = max(number for number, turn in enumerate(turns) if turn.is_answer)
    return turns[: last + 1]


def _turn(message: object, number: int) -> Turn:
    where = f"message {number}"
    if not isinstance(message, dict):
        raise MalformedError(f"{where} is {type(message).__name__}, not an object with role and content")
    for field in ("role", "content"):
        if field not in message:
            raise MalformedError(f"{where} has no '{field}'; it has {', '.join(message) or 'none'}")
    role = message["role"]
    if role not in get_args(Role):
        near = did_you_mean(str(role), get_args(Role))
        raise MalformedError(f"{where} has the role {role!r}; known are {', '.join(get_args(Role))}.{near}")
    content = f"the content of {where}"
    return (
        _answer(message["content"], content) if role == "assistant" else Turn(role, _text(message["content"], content))
    )


def _answer(value: object, name: str) -> Turn:
    text = _text(value, name)
    if not text.strip():
        raise MalformedError(f"{name} is empty, an answer with nothing to learn")
    return Turn("assistant", text)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise MalformedError(f"{name} holds {type(value).__name__}, not text")
    return value
