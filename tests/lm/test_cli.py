"""The `braid` command: exit codes, messages, quick help, and output that programs can read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lm.cli import main
from lm.errors import RankError

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "quickstart.yaml")


def test_an_unknown_verb_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plna", CONFIG]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("braid has no verb 'plna'. Did you mean 'plan'? Verbs: train, plan")
    assert captured.out == ""


@pytest.mark.parametrize("verb", ["train", "plan", "prepare"])
def test_a_mistake_of_the_users_is_one_message_and_exit_code_2(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, CONFIG, "train.stesp=3"]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("command line, train.stesp=3: train.stesp: unknown key. Did you mean 'steps'?")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(("rank", "local", "said"), [(0, 0, "missing"), (1, 1, ""), (8, 0, "rank 8: missing")])
def test_of_several_ranks_the_first_of_a_node_speaks(
    rank: int, local: int, said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("LOCAL_RANK", str(local))
    assert main(["train", f"--local_rank={local}", "missing.yaml"]) == 2
    assert capsys.readouterr().err.partition(".yaml")[0] == said


def test_what_another_rank_alone_has_met_it_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RankError("rank 5: wrong")

    monkeypatch.setattr("lm.run_file.load_run_file", refuse)
    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "5")
    assert main(["plan", CONFIG]) == 2
    assert capsys.readouterr().err == "rank 5: wrong\n"


def test_control_c_ends_quietly(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("lm.run_file.load_run_file", interrupt)
    assert main(["plan", CONFIG]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_plan_for_programs_agrees_with_the_one_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["plan", CONFIG, "model.layers=(rat local)*3 s2", "--world-size", "2"]
    assert main([*arguments, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [layer["mixer"] for layer in plan["layers"]] == ["rat", "local"] * 3 + ["s2"]
    assert plan["training_flops_per_token"] == 3 * plan["flops_per_token"]
    memory = plan["rank_memory"]
    assert memory["total"] == sum(value for key, value in memory.items() if key != "total")
    assert main(arguments) == 0
    table = capsys.readouterr().out
    for layer in plan["layers"]:
        assert f"{layer['parameters']:,}" in table
    assert f"{plan['parameters']:,}" in table


@pytest.mark.parametrize(
    "words",
    [
        [CONFIG, "--json", "model.layers=rat local"],
        [CONFIG, "--world-size", "4", "model.layers=rat local", "--json"],
        ["--json", CONFIG, "model.layers=rat", "--world-size=4", "model.layers=rat local"],
    ],
)
def test_overrides_stand_before_or_behind_options(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words]) == 0
    assert [layer["mixer"] for layer in json.loads(capsys.readouterr().out)["layers"]] == ["rat", "local"]


def test_profiled_steps_are_an_override_like_any(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []
    monkeypatch.setattr("lm.verbs.runs.start", runs.append)
    assert main(["train", CONFIG, "--profile", "10-12,20", "train.steps=30"]) == 0
    assert (runs[0].train.profile, runs[0].train.steps) == ((10, 11, 12, 20), 30)
    assert main(["train", CONFIG, "--profile", "12-10"]) == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["plan", CONFIG, "--train.steps=10"], "write train.steps=10 without dashes"),
        (["plan", CONFIG, "--train.steps", "10"], "write train.steps=10 without dashes"),
        (["train", CONFIG, "--model.layers=(rat local)*2"], "write model.layers=(rat local)*2 without dashes"),
        (["eval", "model", "--seed.value=1"], "braid eval has no option '--seed.value'. Did you mean '--seed'?"),
        (["plan", CONFIG, "--wrld-size", "2"], "braid plan has no option '--wrld-size'. Did you mean '--world-size'?"),
        (["export", "a", "b", "--adaptor-only"], "Did you mean '--adapter-only'?"),
        (["export", "a", "b", "c"], "braid export: 'c' is one word too many\nusage: braid export"),
    ],
)
def test_a_word_that_is_not_known_gets_a_remedy(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.launch
@pytest.mark.parametrize("words", [["schema"], ["plan", CONFIG, "--json"]])
def test_a_reader_that_leaves_ends_it_quietly(words: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "lm", *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("verb", ["train", "prepare"])
def test_missing_text_is_refused_before_anything_heavy(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, CONFIG, "data.sources.0.path=nowhere"]) == 2
    assert "command line, data.sources.0.path=nowhere: data.sources.0.path: 'nowhere'" in capsys.readouterr().err


def test_a_run_can_be_planned_where_its_text_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", CONFIG, "data.sources.0.path=nowhere", "--json"]) == 0
    shown = capsys.readouterr()
    json.loads(shown.out)
    assert shown.err.startswith("to mend before training: command line, data.sources.0.path=nowhere: ")


def test_every_kernel_is_listed_with_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backends"]) == 0
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    assert ["attention", "blocked", "available"] in rows
    assert ["scan", "loop", "available"] in rows
    assert {name for _, name, _ in rows} == {"reference", "blocked", "cpp", "triton", "flash", "flex", "loop"}


def test_the_schema_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert set(json.loads(capsys.readouterr().out)["$defs"]["RunFile"]["properties"]) == {
        "model",
        "data",
        "train",
        "optimizer",
        "deepspeed",
        "log",
        "guard",
        "observe",
        "evaluations",
    }


HELP_THEN_MODULES = """
import sys
from lm.cli import main
from lm.errors import RankError
try:
    main(["--help"])
except SystemExit:
    sys.exit(bool({"torch", "pydantic", "rich"} & set(sys.modules)))
"""


@pytest.mark.launch
def test_help_waits_for_no_heavy_import() -> None:
    ended = subprocess.run([sys.executable, "-c", HELP_THEN_MODULES], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "Pretrain a model" in ended.stdout


@pytest.mark.launch
@pytest.mark.parametrize(
    "arguments",
    [
        ["train.py", "--local_rank=0", "missing.yaml"],  # where the deepspeed launcher puts it
        ["-m", "lm", "train", "missing.yaml", "train.steps=3", "--local-rank", "0"],
    ],
)
def test_the_entries_of_launchers_end_without_a_traceback(arguments: list[str]) -> None:
    ended = subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2
    assert (
        ended.stderr
        == f"missing.yaml: there is no such run file. There are some to start from in {ROOT / 'configs'}.\n"
    )


def test_a_plan_shows_what_ranks_exchange_that_hold_a_row_together(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", CONFIG, "train.sequence_parallel=2", "train.micro_batch_size=1"]
    assert main(words) == 0
    table = capsys.readouterr().out
    assert "Exchange of 2 ranks" in table
    assert "neighbours" in table
    assert main([*words, "--world-size", "3"]) == 2
    assert "start a multiple of 2 ranks" in capsys.readouterr().err
