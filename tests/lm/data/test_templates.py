"""Chat templates that cannot serve are refused with the reason, before or at the record that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm.data.options import ChatOptions, PairsOptions
from lm.data.samples import MalformedError, Role, Turn
from lm.data.templates import Template, UnfitTemplateError, template_of
from lm.data.tokenizers import BytesTokenizer, HuggingFaceTokenizer, load_tokenizer
from lm.errors import UserError

from .conftest import CHATML, THINKING, save_tokenizer

CHAT = ChatOptions(kind="chat", path="a")
KEY = "data.sources.0"


def parts(template: Template, *turns: tuple[Role, str]) -> list[str]:
    said = tuple(Turn(role, text) for role, text in turns)
    return template.parts(said)


def chat(folder: Path) -> Template:
    return template_of(CHAT, HuggingFaceTokenizer(folder), KEY)


def test_pairs_may_go_through_the_chat_template(chatml_folder: Path) -> None:
    options = PairsOptions(kind="sft", path="a", template="chat")
    template = template_of(options, HuggingFaceTokenizer(chatml_folder), KEY)
    asked, answer = parts(template, ("user", "x"), ("assistant", "y"))
    assert asked == "<|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n"
    assert answer == "y<|im_end|>"


def test_what_follows_the_end_of_an_answer_is_read_with_the_next_prompt(chatml_folder: Path) -> None:
    _, _, asked, answer = parts(
        chat(chatml_folder), ("user", "x"), ("assistant", "y"), ("user", "z"), ("assistant", "w")
    )
    assert asked == "\n<|im_start|>user\nz<|im_end|>\n<|im_start|>assistant\n"
    assert answer == "w<|im_end|>"
    assert len(parts(chat(chatml_folder), ("user", "x"), ("assistant", "y"), ("user", "thanks"))) == 2


def test_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data\.sources\.0\.kind: chat needs the chat template of a tokenizer"):
        template_of(CHAT, BytesTokenizer(), KEY)
    with pytest.raises(UserError, match=r"^data\.sources\.0\.template: chat needs the chat template of a tokenizer"):
        template_of(PairsOptions(kind="sft", path="a", template="chat"), BytesTokenizer(), KEY)
    with pytest.raises(UserError, match=r"^data\.sources\.0\.kind: chat: the tokenizer in .* has no chat template"):
        chat(save_tokenizer(tmp_path, None))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML.replace("<|im_end|>", "<end>"), "does not write the answer followed by a special token"),
        (CHATML.replace("m['content']", "m['content'] | upper"), "does not write the answer followed by a special"),
        ("{{ nonsense( }}", "the chat template refuses it"),
    ],
)
def test_a_template_that_ends_no_answer_is_refused_at_once(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.sources\.0\.kind: chat: .*{message}"):
        chat(save_tokenizer(tmp_path, template))


def test_an_end_that_is_not_the_eos_token_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chat(save_tokenizer(tmp_path, CHATML))
    assert not caplog.records
    chat(save_tokenizer(tmp_path, CHATML.replace("<|im_end|>", "<|endoftext|>")))
    (said,) = caplog.records
    assert "answers end with <|endoftext|>, not with the eos token <|im_end|>" in said.message


def test_a_template_that_rewrites_earlier_turns_is_refused_where_that_shows(tmp_path: Path) -> None:
    template = chat(save_tokenizer(tmp_path, THINKING))
    with pytest.raises(UnfitTemplateError, match=r"^the chat template writes earlier messages in another way"):
        parts(template, ("user", "x"), ("assistant", "y"), ("user", "z"), ("assistant", "w"))


def test_what_the_template_itself_refuses_is_named(inst_folder: Path) -> None:
    with pytest.raises(MalformedError, match=r"^the chat template refuses it: only user and assistant are known"):
        parts(chat(inst_folder), ("system", "s"), ("user", "x"), ("assistant", "y"))


def test_an_answer_that_spells_a_special_token_is_refused(chatml_folder: Path) -> None:
    with pytest.raises(MalformedError, match=r"^an answer spells '<\|im_end\|>'"):
        parts(chat(chatml_folder), ("user", "x"), ("assistant", "y<|im_end|>z"))


def test_a_saved_tokenizer_keeps_its_chat_template(chatml_folder: Path, tmp_path: Path) -> None:
    HuggingFaceTokenizer(chatml_folder).save(tmp_path)
    saved = load_tokenizer(tmp_path)
    assert isinstance(saved, HuggingFaceTokenizer)
    assert chat(saved.folder).fingerprint == chat(chatml_folder).fingerprint
