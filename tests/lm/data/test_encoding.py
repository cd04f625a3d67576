"""Only answers and what ends them are learned, prompts give way and answers never, for any tokenizer and template."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lm.data.encoding import SampleEncoder, fair_share, shortened
from lm.data.options import ChatOptions, PairsOptions
from lm.data.readers import Unreadable
from lm.data.samples import Role, Sample, Turn
from lm.data.sentencepiece_training import train_sentencepiece
from lm.data.store import TargetedDocument
from lm.data.templates import template_of
from lm.data.tokenizer_options import SentencePieceOptions
from lm.data.tokenizers import BytesTokenizer, HuggingFaceTokenizer, Tokenizer
from lm.errors import UserError

from .conftest import CHATML, THINKING, save_tokenizer

TEMPLATE = "[INST]{prompt}[/INST]"
LONG = 10_000
kinds = st.sampled_from(["bytes", "sentencepiece", "chatml", "inst"])
letters = st.text(st.sampled_from("ab é\n 😀]["), max_size=30)
answers = letters.filter(str.strip)
Encode = Callable[..., TargetedDocument]


@functools.cache
def sentencepiece() -> Tokenizer:
    code = Path(logging.__file__).read_text()
    passages = [code[start : start + 2000] for start in range(0, len(code), 2000)]
    return train_sentencepiece(SentencePieceOptions(vocab_size=400), passages)


@pytest.fixture(scope="module")
def tokenizer_of(chatml_folder: Path, inst_folder: Path) -> Callable[[str], Tokenizer]:
    folders = {"chatml": HuggingFaceTokenizer(chatml_folder), "inst": HuggingFaceTokenizer(inst_folder)}
    return lambda kind: folders.get(kind) or (BytesTokenizer() if kind == "bytes" else sentencepiece())


def sample(*turns: tuple[Role, str]) -> Sample:
    said = tuple(Turn(role, text) for role, text in turns)
    text = "\n".join(turn.text for turn in said)
    return Sample(text, text.encode(), said, "record 1", origin=("a.json", 1))


class Encoder(SampleEncoder):
    """One that is given no bad samples, unless it is said what becomes of them."""

    def __call__(
        self, samples: Sequence[Sample], on_bad: Callable[[Unreadable], None] = pytest.fail
    ) -> list[TargetedDocument]:
        return super().__call__(samples, on_bad)


def encoder(tokenizer: Tokenizer, length: int, too_long: str = "drop", template: str = TEMPLATE) -> Encoder:
    options = PairsOptions.model_validate({"kind": "sft", "path": "a", "template": template, "too_long": too_long})
    return Encoder(template_of(options, tokenizer, "data.sources.0"), options, length, "data.sources.0")


def chat_encoder(folder: Path, length: int = LONG) -> Encoder:
    options = ChatOptions(kind="chat", path="a")
    key = "data.sources.0"
    return Encoder(template_of(options, HuggingFaceTokenizer(folder), key), options, length, key)


def runs(document: TargetedDocument) -> list[list[int]]:
    """The tokens by turns, of what is read and of what is learned."""
    borders = np.flatnonzero(np.diff(document.targets)) + 1
    return [part.tolist() for part in np.split(document.tokens, borders)]


@given(kind=kinds, prompt=letters, answer=answers, template=st.sampled_from([TEMPLATE, "{prompt}", "Q: {prompt}\nA:"]))
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_prompts_ids_are_its_own_and_the_rest_is_learned(
    tokenizer_of: Callable[[str], Tokenizer], kind: str, prompt: str, answer: str, template: str
) -> None:
    tokenizer = tokenizer_of(kind)
    (document,) = encoder(tokenizer, LONG, template=template)([sample(("user", prompt), ("assistant", answer))])
    asked = template.replace("{prompt}", prompt)
    read, learned = runs(document)
    assert document.tokens.dtype == np.uint32
    assert read == [tokenizer.bos_id, *tokenizer.encode(asked)]
    assert learned[-1] == tokenizer.eos_id
    whole = tokenizer.encode(asked + answer)
    assert [*read[1:], *learned[:-1]] == whole or learned[:-1] == tokenizer.encode(answer)
    if kind != "inst":  # which knows neither é nor 😀
        assert tokenizer.decode(learned) == answer
    assert document.utf8 == answer.encode()


@given(
    kind=kinds,
    prompt=st.text(st.sampled_from("abc é\n"), min_size=1, max_size=300),
    answer=st.text(st.sampled_from("xyz"), min_size=1, max_size=60),
    length=st.integers(1, 200),
)
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_prompt_is_cut_in_the_middle_and_an_answer_never(
    tokenizer_of: Callable[[str], Tokenizer], kind: str, prompt: str, answer: str, length: int
) -> None:
    tokenizer = tokenizer_of(kind)
    encode = encoder(tokenizer, length)
    said = sample(("user", prompt), ("assistant", answer))
    (whole,) = encoder(tokenizer, LONG)([said])
    (least,) = encoder(tokenizer, LONG)([sample(("user", ""), ("assistant", answer))])
    found = encode([said])
    fits, may_fit = len(whole.tokens) <= length + 1, len(least.tokens) <= length + 1
    assert (encode.cut, encode.dropped) == (int(may_fit and not fits), int(not may_fit and not fits))
    assert len(found) == 1 - encode.dropped
    if fits:
        assert found[0].tokens.tolist() == whole.tokens.tolist()
    elif may_fit:
        (document,) = found
        assert len(document.tokens) <= length + 1
        assert runs(document)[-1] == runs(whole)[-1]
        if kind != "inst":
            asked = tokenizer.decode(runs(document)[0])
            kept = asked.removeprefix("[INST]").removesuffix("[/INST]")
            assert len(kept) == len(asked) - len("[INST][/INST]") < len(prompt)
            assert kept == prompt[: len(kept) - len(kept) // 2] + prompt[len(prompt) - len(kept) // 2 :]


def test_a_cut_fills_the_row(tokenizer_of: Callable[[str], Tokenizer]) -> None:
    prompt = Path(logging.__file__).read_text()
    for kind in ("bytes", "sentencepiece", "chatml"):
        (document,) = encoder(tokenizer_of(kind), 2000)([sample(("user", prompt), ("assistant", "It logs."))])
        assert 1900 < len(document.tokens) <= 2001, kind


def test_answers_that_do_not_fit_are_refused_where_that_is_wished() -> None:
    said = [sample(("user", "x"), ("assistant", "y" * 50))]
    with pytest.raises(UserError, match=r"data\.sources\.0\.path: 'a\.json' at record 1: the answers alone take 65 "):
        encoder(BytesTokenizer(), 63, "refuse")(said)
    assert len(encoder(BytesTokenizer(), 64, "refuse")(said)) == 1


@given(
    said=st.lists(st.tuples(letters, answers.map(str.strip)), min_size=1, max_size=4),
    system=st.none() | letters,
)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_conversation_is_what_the_chat_template_makes_of_it(
    chatml_folder: Path, said: list[tuple[str, str]], system: str | None
) -> None:
    turns: list[tuple[Role, str]] = [] if system is None else [("system", system)]
    for question, answer in said:
        turns += [("user", question), ("assistant", answer)]
    (document,) = chat_encoder(chatml_folder)([sample(*turns)])
    tokenizer = AutoTokenizer.from_pretrained(chatml_folder)
    messages = [{"role": role, "content": text} for role, text in turns]
    whole = tokenizer.apply_chat_template(messages)["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert document.tokens.tolist() == whole[: len(document.tokens)]
    assert tokenizer.decode(whole[len(document.tokens) :]) == "\n"
    learned = runs(document)[1::2]
    assert [ids[-1] for ids in learned] == [end] * len(said)
    assert [tokenizer.decode(ids[:-1]) for ids in learned] == [answer for _, answer in said]
    asked = tokenizer.apply_chat_template(messages[: len(turns) - 1], add_generation_prompt=True)["input_ids"]
    assert document.tokens[: len(asked)].tolist() == asked
    assert document.utf8 == "".join(answer for _, answer in said).encode()


def test_answers_of_a_template_with_spaces_around_them(inst_folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(inst_folder)
    turns: list[tuple[Role, str]] = [
        ("user", "def x"),
        ("assistant", "return y"),
        ("user", "z"),
        ("assistant", "w"),
    ]
    (document,) = chat_encoder(inst_folder)([sample(*turns)])
    whole = tokenizer.apply_chat_template([{"role": role, "content": text} for role, text in turns])["input_ids"]
    assert document.tokens.tolist() == whole
    read, learned, _, again = runs(document)
    assert tokenizer.decode(read) == "<s>[INST] def x [/INST]"
    assert [tokenizer.decode(ids).strip() for ids in (learned, again)] == ["return y </s>", "w </s>"]
    assert tokenizer.convert_ids_to_tokens(learned[0]).startswith("▁r"), "the space belongs to the answer's first token"


@given(answer=st.text(st.sampled_from("\n a"), min_size=1, max_size=6).filter(str.strip))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_an_answer_that_would_melt_into_its_prompt_does_not(chatml_folder: Path, answer: str) -> None:
    (document,) = chat_encoder(chatml_folder)([sample(("user", "x"), ("assistant", answer))])
    tokenizer = AutoTokenizer.from_pretrained(chatml_folder)
    asked = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=True)["input_ids"]
    read, learned = runs(document)
    assert read == asked
    assert tokenizer.decode(learned) == answer + "<|im_end|>"


@given(lengths=st.lists(st.integers(0, 50), min_size=1, max_size=6), total=st.integers(0, 300))
def test_the_longest_give_way_first(lengths: list[int], total: int) -> None:
    most = fair_share(lengths, total)
    assert sum(min(length, most) for length in lengths) <= total or most == 0
    assert most >= max(lengths) or sum(min(length, most + 1) for length in lengths) > total


@given(text=letters, most=st.integers(0, 40))
def test_shortened_keeps_both_ends(text: str, most: int) -> None:
    prompt, answer = shortened([Turn("user", text), Turn("assistant", text)], most)
    assert answer.text == text
    kept = prompt.text
    assert len(kept) == min(len(text), most)
    half = len(kept) - len(kept) // 2
    assert text.startswith(kept[:half])
    assert text.endswith(kept[half:])


def test_long_messages_of_a_conversation_give_way_before_short_ones(chatml_folder: Path) -> None:
    turns: list[tuple[Role, str]] = [
        ("system", "Be short."),
        ("user", "logging " * 300),
        ("assistant", "first " * 20),
        ("user", "handler " * 200),
        ("assistant", "second"),
    ]
    encode = chat_encoder(chatml_folder, 400)
    (document,) = encode([sample(*turns)])
    text = AutoTokenizer.from_pretrained(chatml_folder).decode(document.tokens)
    assert encode.cut == 1
    assert 380 < len(document.tokens) <= 401
    assert "Be short.<|im_end|>" in text
    assert "first " * 20 + "<|im_end|>" in text
    assert text.count("logging ") == pytest.approx(text.count("handler "), abs=2)


ALTERNATE = CHATML.replace(
    "{% for m in messages %}",
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if not m['content'] %}{{ 0 / 0 }}{% endif %}",
)
turns_of = st.sampled_from(["ua", "uaua", "uua", "us", "ue"]).map(list)
TURNS: dict[str, tuple[Role, str]] = {
    "u": ("user", "a question " * 9),
    "a": ("assistant", "yes"),
    "s": ("assistant", "<|im_end|>"),
    "e": ("assistant", "no" * 600),
}
REASONS = {
    "uua": "the chat template refuses it: roles must alternate",
    "us": "an answer spells '<|im_end|>', a token that is no text",
    "ue": "the chat template refuses it: division by zero",  # whose prompt must give way, down to nothing
}


@given(said=st.lists(turns_of, max_size=8))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_the_template_does_not_write_is_left_out_alone(alternating: Encoder, said: list[list[str]]) -> None:
    samples = [
        replace(sample(*(TURNS[turn] for turn in turns)), where=f"record {number}", origin=("a.json", number))
        for number, turns in enumerate(said)
    ]
    bad: list[Unreadable] = []
    documents = alternating(samples, bad.append)
    reasons = [REASONS.get("".join(turns)) for turns in said]
    assert [document.origin for document in documents] == [
        ("a.json", number) for number, reason in enumerate(reasons) if reason is None
    ]
    assert sorted((item.where, item.reason) for item in bad) == sorted(
        (f"record {number}", reason) for number, reason in enumerate(reasons) if reason is not None
    )
    assert {(item.path, item.kind) for item in bad} <= {(Path("a.json"), "malformed")}
    for document in documents:
        (alone,) = alternating([samples[document.origin[1]]])
        assert alone.tokens.tolist() == document.tokens.tolist()


@pytest.fixture(scope="module")
def alternating(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return chat_encoder(save_tokenizer(tmp_path_factory.mktemp("alternating"), ALTERNATE), 300)


def test_a_template_that_rewrites_earlier_turns_is_refused_unless_bad_records_are_to_be_skipped(tmp_path: Path) -> None:
    folder = save_tokenizer(tmp_path, THINKING)
    template = template_of(ChatOptions(kind="chat", path="a"), HuggingFaceTokenizer(folder), "data.sources.0")
    said, told = sample(TURNS["u"], TURNS["a"], TURNS["u"], TURNS["a"]), list[Unreadable]()
    for wished in (None, "refuse"):
        options = ChatOptions(kind="chat", path="a", bad_records=wished)
        with pytest.raises(
            UserError, match=r"^data\.sources\.0\.path: 'a\.json' at record 1: .*bad_records to skip\.$"
        ):
            SampleEncoder(template, options, LONG, "data.sources.0")([said], told.append)
    options = ChatOptions(kind="chat", path="a", bad_records="skip")
    assert SampleEncoder(template, options, LONG, "data.sources.0")([said], told.append) == []
    assert [(item.where, item.kind) for item in told] == [("record 1", "malformed")]
