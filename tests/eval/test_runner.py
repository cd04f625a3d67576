"""Whole evaluations of tiny models: what is in the folder, whatever happened on the way."""

from __future__ import annotations

import json
import multiprocessing
import re
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import GPT2Config, GPT2LMHeadModel, RecurrentGemmaConfig, RecurrentGemmaForCausalLM

from eval.asking import ask
from eval.efficiency import Efficiency, efficiency
from eval.model import Model
from eval.opening import open_model
from eval.options import EvaluationOptions
from eval.perplexity import NoFigureError, strided
from eval.reading import PROTOCOLS, Corpus, Reading
from eval.results import SampleFile, load_results
from eval.runner import open_texts, settings_of
from eval.selection import Questions
from eval.tasks import TASKS, open_haystack
from eval.text import read_text
from lm.cli import main
from lm.train.progress import Progress

SaveModel = Callable[..., None]
SETTINGS = ("--tasks", "passkey,passkey_longlora", "--lengths", "520,600", "--samples", "6", "--seed", "3")


@pytest.fixture(scope="module")
def folder(save_model: SaveModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model("llama", folder, initializer_range=0.1)
    return folder


def evaluate(folder: Path, output: Path, *more: str) -> int:
    cache = ["--cache-dir", str(folder.parent / "cache")]
    return main(["eval", str(folder), *SETTINGS, "--output", str(output), *cache, *more])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def without_clock(output: Path) -> dict[str, Any]:
    """The result but for the figures that depend on how busy the machine is."""
    values = read(output / "results.json")
    assert [found["of"] for found in values.pop("measurements")] == ["520 tokens", "600 tokens"]
    return dict(values)


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of an evaluation that nothing interrupted; only to be read."""
    output = tmp_path_factory.mktemp("whole") / "out"
    assert evaluate(folder, output) == 0
    return output


def test_a_result_says_all_that_fixes_it(whole: Path, folder: Path) -> None:
    values = read(whole / "results.json")
    assert values["model"]["name"] == "tiny"
    assert values["model"]["path"] == str(folder)
    assert len(values["model"]["fingerprint"]) == len(values["tokenizer"]) == len(values["prompts"]) == 16
    assert (values["seed"], values["samples"], values["lengths"]) == (3, 6, [520, 600])
    assert {"torch", "transformers", "Python"} <= values["environment"].keys()
    assert values["haystack"] is None  # the passkey has a filler of its own
    scores = {(cell["task"], cell["length"]): cell for cell in values["scores"]}
    assert scores.keys() == {(task, n) for task in ("passkey", "passkey_longlora") for n in (520, 600)}
    records = SampleFile.read(whole / "samples.jsonl")
    assert len(records) == 24
    for (task, length), cell in scores.items():
        mine = [record["score"] for record in records if (record["task"], record["length"]) == (task, length)]
        assert cell["mean"] == pytest.approx(sum(mine) / 6)
        assert (cell["n"], cell["metric"]) == (6, TASKS[task].metric)
    speed = values["measurements"][0]
    assert speed["prefill_tokens_per_second"] > 0
    assert speed["decode_tokens_per_second"] > 0
    assert speed["cache_bytes"] == 2 * 2 * 2 * 8 * 4 * 520  # layers, keys and values, heads, width, fp32, tokens
    assert speed["peak_bytes"] is None or speed["peak_bytes"] > speed["cache_bytes"]
    assert "</html>" in (whole / "report.html").read_text()


@pytest.mark.launch
def test_killed_at_any_moment_it_goes_on_to_the_same_result(whole: Path, folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    spawning = multiprocessing.get_context("spawn")
    process = spawning.Process(target=evaluate, args=(folder, output, "--batch-tokens", "600"))
    process.start()
    while process.is_alive() and lines(output) < 5:
        time.sleep(0.001)
    process.kill()
    process.join(60)
    assert process.exitcode == -9
    assert 5 <= lines(output) < lines(whole)
    assert not (output / "results.json").exists()
    with (output / "samples.jsonl").open("a") as file:
        file.write('{"task": "pass')
    assert evaluate(folder, output) == 0
    assert without_clock(output) == without_clock(whole)


def lines(output: Path) -> int:
    path = output / "samples.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_finished_evaluation_is_not_done_again(whole: Path, folder: Path) -> None:
    before = [(whole / name).read_bytes() for name in ("samples.jsonl", "measurements.jsonl", "settings.json")]
    assert evaluate(folder, whole) == 0
    assert [(whole / name).read_bytes() for name in ("samples.jsonl", "measurements.jsonl", "settings.json")] == before


def test_another_model_or_setting_is_refused_by_name(
    whole: Path, save_model: SaveModel, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model("llama", tmp_path / "other", initializer_range=0.2)
    assert evaluate(tmp_path / "other", whole) == 2
    said = capsys.readouterr().err
    assert f"{whole} holds an evaluation with other settings:\n  model.fingerprint was" in said
    assert f" of tiny ({folder}) and is now " in said
    assert f" of other ({tmp_path / 'other'})\n" in said
    assert "choose another folder" in said
    assert evaluate(folder, whole, "--samples", "7") == 2
    assert "samples was 6 and is now 7" in capsys.readouterr().err


def test_the_same_weights_elsewhere_go_on(whole: Path, save_model: SaveModel, tmp_path: Path) -> None:
    save_model("llama", tmp_path / "moved", initializer_range=0.1)
    assert evaluate(tmp_path / "moved", whole) == 0


def test_texts_are_read_by_every_protocol_at_every_length_once(folder: Path, tmp_path: Path, capsys) -> None:
    for name, text in (("long", "All happy families are alike. " * 12), ("short", "Call me Ishmael.")):
        (tmp_path / f"{name}.txt").write_text(text)
    output, protocols = tmp_path / "out", list(PROTOCOLS)
    command = ["eval", str(folder), "--perplexity", str(tmp_path / "long.txt"), str(tmp_path / "short.txt")]
    command += ["--lengths", "64,128", "--protocols", ",".join(protocols), "--output", str(output)]
    assert main(command) == 0
    assert "is made for" not in capsys.readouterr().out
    found = load_results(output).measured("perplexity")
    long, short = (
        {(one["by"], one["length"]): one for one in found if one["text"].endswith(f"{name}.txt")}
        for name in ("long", "short")
    )
    wanted = {(by, n) for by in protocols for n in (64, 128)} - {("by-position", 64)}
    assert long.keys() == short.keys() == wanted
    # Nothing is key to a model that finds everything unlikely, and LongLoRA's last window is left out.
    assert {place for place, one in long.items() if "reason" in one} == {
        ("window-mean", 128),
        ("key-tokens", 64),
        ("key-tokens", 128),
    }
    assert {by for (by, _), one in short.items() if "nll" in one} == {"strided", "disjoint", "rolling"}

    model = open_model(folder)
    text = read_text(model.tokenizer, (tmp_path / "long.txt").read_text())
    assert long["strided", 64]["nll"] == pytest.approx(strided(model, [text], 64, 32, 256).nll)
    assert {one["protocol"].partition(",")[0] for one in found} <= set(protocols)
    assert long["strided", 64]["tokens"] == len(text) == 360
    assert (long["last-tokens", 128]["units"], long["last-tokens", 128]["tokens"]) == (2, 64)  # pieces of 360 tokens
    curve = long["by-position", 128]["by_position"]
    assert (curve[0]["first"], curve[-1]["end"]) == (1, 128)
    content = (output / "measurements.jsonl").read_bytes()
    assert main(command) == 0
    assert (output / "measurements.jsonl").read_bytes() == content


@pytest.mark.parametrize(
    ("content", "words", "without"),
    [
        ("All happy families are alike.", ["--lengths", "1,16"], {("window-mean", 1), ("key-tokens", 1)}),
        ("x", ["--lengths", "16"], {(protocol, 16) for protocol in PROTOCOLS}),
        ("\N{GRINNING FACE}" * 9, ["--lengths", "2"], {("key-tokens", 2)}),
        ("All happy families are alike.", ["--lengths", "16", "--text-tokens", "2"], {("last-tokens", 16)}),
    ],
)
def test_where_there_is_too_little_text_it_is_said_in_its_place(
    content: str, words: list[str], without: set[tuple[str, int]], folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text(content)
    command = ["eval", str(folder), "--perplexity", str(tmp_path / "text.txt"), "--protocols", ",".join(PROTOCOLS)]
    assert main([*command, "--output", str(tmp_path / "out"), *words]) == 0
    found = load_results(tmp_path / "out").measured("perplexity")
    assert {(one["by"], one["length"]) for one in found if "reason" in one} >= without
    assert all(one["reason"] for one in found if not {"nll", "by_position"} & one.keys())


def test_key_tokens_are_sought_within_the_tokens_that_are_read(new_model: Callable[..., Model]) -> None:
    model = new_model("llama")
    corpus = Corpus("four", ["a" * 40, "b", "c" * 70, "d" * 40])
    excerpts = corpus.beginning(model, 100)
    assert [excerpt.content for excerpt in excerpts] == [b"a" * 40, b"c" * 60]
    assert [row for excerpt in excerpts for row in excerpt.rows(30)] == ["a" * 30, "c" * 30, "c" * 30]
    assert [excerpt.rows(61) for excerpt in excerpts] == [[], []]


def test_the_documentation_of_python_stands_back_for_a_folder_of_its_name(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def texts(*named: str) -> list[str]:
        output = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        words = ["--protocols", "disjoint", "--lengths", "8", "--text-tokens", "8", "--output", str(output)]
        assert main(["eval", str(folder), "--perplexity", *named, *words]) == 0
        return [one["text"] for one in load_results(output).measured("perplexity")]

    monkeypatch.chdir(tmp_path)
    ours = open_haystack().name
    assert texts() == texts("python-docs") == [ours]
    (tmp_path / "python-docs").mkdir()
    (tmp_path / "python-docs" / "one.txt").write_text("mine")
    assert texts("python-docs") == [str(tmp_path / "python-docs")]
    assert texts() == [ours]


def gpt(positions: int, folder: Path, tokenizer: Any) -> Path:
    """A saved model with embeddings of so many positions."""
    sizes = {"vocab_size": 258, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": positions}
    GPT2LMHeadModel(GPT2Config(**sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_an_evaluator_without_positions_for_a_length_is_named_and_so_is_a_row_that_grows(
    folder: Path, new_model: Callable[..., Model], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = new_model("llama")
    short = gpt(16, tmp_path / "gpt", model.tokenizer)
    words = ["--perplexity", "--protocols", "key-tokens", "--evaluator", str(short), "--lengths", "8,17"]
    assert main(["eval", str(folder), *words, "--output", str(tmp_path / "out")]) == 2
    assert "--evaluator: 17 is beyond the 16 positions that gpt has embeddings for" in capsys.readouterr().err
    corpus = Corpus("one", ["a" * 40])  # a tokenizer that cuts finer than the model's has more tokens in a row
    reading = Reading(model, open_model(short), corpus, corpus.beginning(model, 40), 18, [18])
    with pytest.raises(NoFigureError, match="gpt cuts a row into 18 tokens and has embeddings for 16 positions"):
        PROTOCOLS["key-tokens"](reading)


def test_memory_is_measured_when_the_evaluator_is_gone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[weakref.ref[Model]] = []
    gone: list[bool] = []

    def open_noted(*args: Any, **options: Any) -> Model:
        model = open_model(*args, **options)
        opened.append(weakref.ref(model))
        return model

    def measured(model: Model, length: int) -> Efficiency:
        gone.append(opened[1]() is None)
        return efficiency(model, length)

    monkeypatch.setattr("eval.entry.open_model", open_noted)
    monkeypatch.setattr("eval.runner.efficiency", measured)
    (tmp_path / "text.txt").write_text("All happy families are alike. " * 3)
    words = ["--perplexity", str(tmp_path / "text.txt"), "--protocols", "key-tokens", "--evaluator", str(folder)]
    assert main(["eval", str(folder), *words, "--lengths", "32", "--output", str(tmp_path / "out")]) == 0
    assert gone == [True]


def test_a_model_without_a_cache_is_evaluated_and_its_speed_is_not(
    new_model: Callable[..., Model], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    griffin = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**sizes, intermediate_size=48, lru_width=32))
    griffin.save_pretrained(tmp_path / "griffin")
    new_model("llama").tokenizer.save_pretrained(tmp_path / "griffin")
    (tmp_path / "text.txt").write_text("All happy families are alike. " * 3)
    words = ["--perplexity", str(tmp_path / "text.txt"), "--protocols", "strided", "--lengths", "32"]
    assert main(["eval", str(tmp_path / "griffin"), *words, "--output", str(tmp_path / "out")]) == 0
    (found,) = load_results(tmp_path / "out").measured("efficiency")
    assert found["length"] == 32
    for said in (found["reason"], capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()):
        assert "griffin hands out no cache" in said


@pytest.mark.parametrize(
    ("names", "used"),
    [
        (["passkey", "mqar", "niah_single_1"], set()),
        (["passkey", "niah_single_2"], {"haystack"}),
        (["qa_1"], {"squad"}),
        (["qa_2", "copy"], {"haystack", "hotpotqa"}),
    ],
)
def test_texts_are_recorded_where_a_task_uses_them(
    names: list[str], used: set[str], new_model: Callable[..., Model], tmp_path: Path
) -> None:
    paths = {"squad": tmp_path / "squad.json", "hotpotqa": tmp_path / "hotpotqa.json"}
    for path in paths.values():
        path.write_text("[]")
    options = EvaluationOptions(**paths)
    settings = settings_of(new_model("llama"), "x", options, [TASKS[name] for name in names], open_texts(options))
    assert {key for key in ("haystack", "squad", "hotpotqa") if settings[key] is not None} == used


class TwoRanks:
    """One of two threads that talk as two ranks do."""

    def __init__(self, rank: int, said: dict[int, Any], barrier: threading.Barrier) -> None:
        self.rank, self.size = rank, 2
        self._said, self._barrier = said, barrier

    def gather(self, value: Any) -> list[Any]:
        self._said[self.rank] = value
        self._barrier.wait()
        values = [self._said[rank] for rank in range(self.size)]
        self._barrier.wait()
        return values

    def on_rank_zero(self, work: Callable[[], Any]) -> Any:
        return self.gather(work() if self.rank == 0 else None)[0]


@pytest.mark.parametrize("tokens", [1, 1300, 100_000])
def test_neither_batches_nor_ranks_change_an_answer(
    new_model: Callable[..., Model], whole: Path, tmp_path: Path, tokens: int
) -> None:
    model = new_model("llama", initializer_range=0.1)
    haystack = open_haystack()
    questions = [
        Questions(TASKS[task], length, TASKS[task].samples(model, length, 6, 3, haystack))
        for length in (520, 600)
        for task in ("passkey", "passkey_longlora")
    ]
    said: dict[int, Any] = {}
    barrier = threading.Barrier(2)
    path = tmp_path / "samples.jsonl"

    def work(rank: int) -> None:
        ask(model, questions, path, tokens, TwoRanks(rank, said, barrier), Progress(rank=1))  # type: ignore[arg-type]

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    order = sorted(SampleFile.read(path), key=lambda record: record["id"])
    assert order == sorted(SampleFile.read(whole / "samples.jsonl"), key=lambda record: record["id"])


def test_a_task_that_does_not_fit_is_left_out_aloud(folder: Path, tmp_path: Path, capsys) -> None:
    assert evaluate(folder, tmp_path / "out", "--lengths", "100,520") == 0
    said = capsys.readouterr().out
    assert re.search(r"left out at 100 tokens, as they need more .*: passkey \(\d+\), passkey_longlora \(\d+\)\n", said)
    result = load_results(tmp_path / "out")
    assert [(one["task"], one["length"]) for one in result.skipped] == [("passkey", 100), ("passkey_longlora", 100)]
    assert result.lengths == [520]
    assert evaluate(folder, tmp_path / "none", "--lengths", "100") == 2
    # What ended before its first answer does not bind its folder.
    assert evaluate(folder, tmp_path / "none", "--tasks", "parity", "--lengths", "150", "--samples", "1") == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "rulr"], "--tasks: 'rulr' is no task of the offline suite. Did you mean 'ruler'? Suites: ruler"),
        (["--tasks", "paskey"], "--tasks: 'paskey' is no task of the offline suite. Did you mean 'passkey'?"),
        (["--haystack", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--perplexity", "/nowhere/at/all"], "--perplexity: '/nowhere/at/all' does not exist"),
        (["--output", "/dev/null/out"], "--output: /dev/null is a file, not a folder"),
        (["--longbench", "/nowhere", "--longbench-tasks", "qaspr"], "no task 'qaspr'. Did you mean 'qasper'"),
        (["--longbench", "/nowhere", "--longbench-tasks", "qasper"], "/nowhere: there is no such folder or file"),
        (["--perplexity", "--evaluator", "other"], "--evaluator finds key tokens: add --perplexity"),
        (["--perplexity", "--protocols", "stride"], "--protocols: there is no 'stride'. Did you mean 'strided'?"),
        (["--protocols", "strided", "--text-tokens", "9"], "--protocols, --text-tokens is for --perplexity"),
    ],
)
def test_mistakes_are_named_before_anything_is_asked(
    words: list[str], message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["eval", str(folder), "--lengths", "520", "--output", str(tmp_path / "out"), *words]
    chosen = {"--suite", "--tasks", "--longbench"} & set(words)
    assert main(command if chosen else [*command, "--tasks", "passkey"]) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert "opening" not in said.out
    assert not (tmp_path / "out").exists()


def test_a_model_that_does_not_exist_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(tmp_path / "nothing"), "--tasks", "passkey"]) == 2
    assert "there is no such file or folder" in capsys.readouterr().err
    assert main(["eval", "model", "--perplexity", "--samples", "3"]) == 2
    assert "--samples is for --tasks" in capsys.readouterr().err
    for words, said in (
        (["--lengths", "512,0"], "'0' is not a whole number of 1 or more"),
        (["--perplexity", "--text-tokens", "1"], "--text-tokens: '1' is not a whole number of 2 or more"),
        (["--lengths", "1k"], "'1k' is not a whole number of 1 or more"),
        (["--lengths", ""], "'' names nothing"),
        (["--tasks", ","], "',' names nothing"),
    ):
        assert main(["eval", "model", *words]) == 2
        assert said in capsys.readouterr().err
