from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.longbench import longbench_tasks, read_longbench
from eval.longbench.data import Row
from eval.longbench.tasks import RULES, LongBenchTask, fit_middle
from eval.model import Model
from eval.options import LongBenchOptions
from eval.tasks import CannotBuildError, Haystack, Sample, open_haystack
from lm.errors import UserError

NewModel = Callable[..., Model]
OneRow = Callable[..., Row]
CHINESE = ("multifieldqa_zh", "dureader", "vcsum")


@pytest.fixture
def model(new_model: NewModel) -> Model:
    return new_model("llama")


@pytest.fixture
def haystack() -> Haystack:
    return open_haystack()


@pytest.fixture
def jieba(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts at every character, as jieba cuts many."""
    monkeypatch.setitem(sys.modules, "jieba", SimpleNamespace(cut=lambda text, cut_all: iter(text)))


def opened(model: Model, copy: Path, *names: str, **more: Any) -> list[LongBenchTask]:
    options = LongBenchOptions(data=str(copy), tasks=names, **more)
    return longbench_tasks(model, read_longbench(options), options)


def asked(task: LongBenchTask, length: int = 100_000) -> list[Sample]:
    return task.samples(task.model, length, 100, 0, None)  # type: ignore[arg-type]


@pytest.mark.usefixtures("jieba")
def test_gold_answers_get_all_points_and_others_few(copy: Path, model: Model) -> None:
    tasks = opened(model, copy)
    assert [task.name for task in tasks] == list(RULES)
    for task in tasks:
        for sample in asked(task):
            for answer in sample.answers:
                assert task.score(answer, sample) == pytest.approx(1.0, abs=1e-6), task.name
            assert task.score("zzz", sample) < 0.25, task.name
            assert task.score("", sample) == 0.0, task.name


def score(name: str, row: Row, model: Model, prediction: str) -> float:
    task = LongBenchTask(name, RULES[name], [row], model, chat=False)
    return task.score(prediction, asked(task)[0])


def test_scores_by_the_benchmarks_rules(model: Model, one_row: OneRow) -> None:
    f1 = one_row("qasper", answers=["cat sat down", "a dog"])
    assert score("qasper", f1, model, "The cat sat.") == pytest.approx(0.8)
    assert score("qasper", f1, model, "Dog") == 1.0
    # Only the first line of few-shot answers counts, blank ones before it aside.
    trivia = one_row("triviaqa", answers=["cat"])
    assert score("triviaqa", trivia, model, "\n\ncat\nPassage: dog") == 1.0
    assert score("qasper", one_row("qasper", answers=["cat"]), model, "cat\ndog") == pytest.approx(2 / 3)
    trec = one_row("trec")
    assert score("trec", trec, model, "Number of something") == 1.0
    assert score("trec", trec, model, "Food, or Number of something") == 0.5
    assert score("trec", trec, model, "Number") == 0.0
    assert score("trec", trec, model, "Food\nNumber of something") == 0.0
    assert score("passage_count", one_row("passage_count", answers=["7"]), model, "7, not 8, 9 or 10") == 0.25
    assert score("passage_retrieval_en", one_row("passage_retrieval_en"), model, "Paragraph 7") == 1.0
    code = one_row("lcc", answers=["x = 1"])
    assert score("lcc", code, model, "# a comment\nx = 1\ny = 2") == 1.0


def test_prompts_are_the_benchmarks(model: Model, one_row: OneRow) -> None:
    row = one_row("passage_retrieval_en", context="All of {input}", input="It.")
    (sample,) = asked(LongBenchTask("passage_retrieval_en", RULES["passage_retrieval_en"], [row], model, chat=False))
    assert sample.prompt == (
        "Here are 30 paragraphs from Wikipedia, along with an abstract. Please determine which paragraph the abstract "
        "is from.\n\nAll of {input}\n\nThe following is an abstract.\n\nIt.\n\nPlease enter the number of the "
        'paragraph that the abstract is from. The answer format must be like "Paragraph 1", "Paragraph 2", '
        "etc.\n\nThe answer is: "
    )
    assert (sample.max_new_tokens, sample.meta["whole"], sample.meta["words"]) == (32, 1, 3999)
    assert sample.meta["tokens"] == len(model.encode_prompt(sample.prompt))


def test_a_long_prompt_keeps_both_ends(model: Model, one_row: OneRow) -> None:
    task = LongBenchTask("qasper", RULES["qasper"], [one_row("qasper", context="x" * 5000)], model, chat=False)
    (whole,) = asked(task)
    (sample,) = asked(task, length=1000)
    room = 1000 - 128
    half = room // 2
    assert sample.prompt == whole.prompt[:half] + whole.prompt[-half:]
    assert sample.meta["tokens"] == room
    assert (whole.meta["whole"], sample.meta["whole"]) == (1, 0)
    with pytest.raises(CannotBuildError, match="qasper needs 128 tokens"):
        asked(task, length=128)


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.sampled_from("aé東\U0001f600 "), min_size=1, max_size=60), room=st.integers(2, 80))
def test_what_is_kept_fits_with_what_is_around_it(text: str, room: int) -> None:
    model = FakeBytes()
    prompt, tokens, whole = fit_middle(model, text, room, lambda inner: f"<{inner}>")  # type: ignore[arg-type]
    needed = len(model.encode_prompt(f"<{text}>"))
    if prompt is None:
        assert room < 8  # a cut letter is written in three bytes, on either side
        return
    assert tokens == len(model.encode_prompt(prompt)) <= room
    assert whole == (needed <= room) == (prompt == f"<{text}>")
    assert prompt[0] == "<"
    assert prompt[-1] == ">"


class FakeBytes:
    """A byte tokenizer, where a letter that is cut in the middle grows when it is decoded."""

    def encode_prompt(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode(errors="replace")


def test_chat_templates_hold_all_but_the_plain_tasks(model: Model, copy: Path) -> None:
    with pytest.raises(UserError, match="no chat template"):
        opened(model, copy, "trec", apply_chat_template=True)
    model.tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.content }}]{% endfor %}{% if add_generation_prompt %}!{% endif %}"
    )
    names = [name for name in RULES if name not in CHINESE]
    for task in opened(model, copy, *names, apply_chat_template=True):
        sample = asked(task, length=800)[0]
        assert sample.prompt.endswith("]!") == (
            task.name not in ("trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p")
        )
        assert int(sample.meta["tokens"]) + sample.max_new_tokens <= 800


def test_longbench_e_comes_in_buckets_of_words(model: Model, copy: Path) -> None:
    tasks = opened(model, copy, "lcc", "trec", extended=True)
    found = {task.name: [row.words for row in task.rows] for task in tasks}
    assert found == {
        f"{name}_e/{bucket}": [words]
        for name in ("trec", "lcc")
        for bucket, words in (("0-4k", 3999), ("4-8k", 4000), ("8k+", 8000))
    }
    with pytest.raises(UserError, match=r"LongBench-E has no task 'musique'"):
        opened(model, copy, "musique", extended=True)


def test_mistakes_are_said_by_name(model: Model, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"no task 'qaspr'\. Did you mean 'qasper'"):
        opened(model, copy, "qaspr")
    monkeypatch.setitem(sys.modules, "jieba", None)
    others = "ask for others: --longbench-tasks narrativeqa,qasper,multifieldqa_en,"
    with pytest.raises(UserError, match=f"multifieldqa_zh, dureader, vcsum: .* pip install jieba, or {others}"):
        opened(model, copy)
    with pytest.raises(UserError, match=r"^--longbench: nix.zip: there is no such folder or file"):
        opened(model, Path("nix.zip"))
    assert [task.name for task in opened(model, copy, "lsht", "qasper")] == ["qasper", "lsht"]


@pytest.mark.usefixtures("jieba")
def test_chinese_words_are_compared_without_punctuation(model: Model, one_row: OneRow, copy: Path) -> None:
    row = one_row("multifieldqa_zh", answers=["北京 大学。"])
    assert score("multifieldqa_zh", row, model, "北京大学") == 1.0
    assert score("multifieldqa_zh", row, model, "北京") == pytest.approx(2 * 1 * 0.5 / 1.5)
    summary = one_row("vcsum", answers=["甲乙丙丁"])
    assert score("vcsum", summary, model, "甲乙") == pytest.approx(2 * 1 * 0.5 / 1.5)


def test_a_task_is_asked_like_any_other(copy: Path, model: Model, haystack: Any) -> None:
    (task,) = opened(model, copy, "hotpotqa")
    samples = task.samples(model, 900, 2, 42, haystack)
    assert [sample.id for sample in samples] == ["hotpotqa-3999", "hotpotqa-4000"]
    written = model.generate([model.encode_prompt(sample.prompt) for sample in samples], samples[0].max_new_tokens)
    assert all(0 <= task.score(model.decode(ids), one) <= 1 for ids, one in zip(written, samples, strict=True))


def test_answers_that_no_score_could_compare_are_refused(copy: Path, new_row: Callable[..., dict[str, Any]]) -> None:
    for name, changes, said in (
        ("passage_count", {"answers": ["seven"]}, r"row 2: the score compares integers, and an answer has none"),
        ("trec", {"all_classes": None}, "row 2: the score compares classes, and there are none"),
    ):
        rows = [new_row(name), new_row(name, **changes)]
        (copy / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        with pytest.raises(UserError, match=f"{name}, {said}"):
            read_longbench(LongBenchOptions(data=str(copy), tasks=(name,)))
