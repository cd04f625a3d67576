"""What holds for every verb: help with an example, mistakes in one style, exit codes as `braid --help` states them."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from lm import cli
from lm.cli import EXIT_CODES, main, parser
from lm.train.watchdog import RANK_LOST
from lm.verbs import VERBS

ROOT = Path(__file__).parents[3]
NOWHERE = "nowhere/at/all"
# For each verb a call that leads to no file or folder; those that take none are not here.
MISSING = {
    "train": [NOWHERE],
    "plan": [NOWHERE],
    "prepare": [NOWHERE],
    "data": [NOWHERE],
    "graft": [NOWHERE],
    "watch": [NOWHERE],
    "import": [NOWHERE, "made"],
    "export": [NOWHERE, "made"],
    "generate": [NOWHERE, "--prompt", "x"],
    "chat": [NOWHERE],
    "measure": [NOWHERE],
    "eval": [NOWHERE, "--tasks", "passkey"],
    "verify": [NOWHERE],
    "bench": ["report", NOWHERE],
}
WITHOUT_FILES = {"dashboard", "backends", "build-kernels", "schema"}


def said(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a call that must be refused says."""
    assert main(words) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert captured.out == ""
    return captured.err


@pytest.mark.parametrize("verb", VERBS)
def test_it_explains_itself_with_an_example_that_parses(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert VERBS[verb].summary in shown
    assert f"example: {VERBS[verb].example}" in shown
    program, *words = shlex.split(VERBS[verb].example.partition(" > ")[0])
    assert (program, words[0]) == ("braid", verb)
    assert parser().parse_args(words).verb == verb
    for word in words:
        assert not word.endswith(".yaml") or (ROOT / word).exists()


@pytest.mark.parametrize("verb", VERBS)
def test_an_option_that_it_lacks_is_refused_with_the_nearest(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Even where the words that it needs are missing, too."""
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    options = set(re.findall(r"^ +(?:-h, )?(--[\w-]+)", capsys.readouterr().out, re.MULTILINE))
    assert "--help" in options
    for option in options:
        message = said([verb, f"{option[:-1]}{option[-1] * 2}=1"], capsys)
        assert message.startswith(
            f"braid {verb} has no option '{option[:-1]}{option[-1] * 2}'. Did you mean '{option}'?"
        )
        assert message.count("\n") == 1


@pytest.mark.parametrize("verb", VERBS)
def test_a_word_that_is_missing_or_too_many_is_answered_with_usage_and_example(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    needs = "" if verb in ("backends", "build-kernels", "schema") else "required"
    message = said([verb] if needs else [verb, "surplus"], capsys)
    assert needs in message
    assert f"usage: braid {verb}" in message
    assert message.endswith(f"example: {VERBS[verb].example}\n")


@pytest.mark.parametrize("verb", MISSING)
def test_a_file_that_is_not_there_is_named(
    verb: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([verb, *MISSING[verb]]) == 2
    message = capsys.readouterr().err
    assert NOWHERE in message
    assert "Traceback" not in message
    assert len(message) < 400
    assert list(tmp_path.iterdir()) == [], "a call that was refused leaves nothing behind"


@pytest.mark.parametrize("verb", VERBS)
def test_ctrl_c_says_whether_it_goes_on(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, verb, replace(VERBS[verb], run=interrupt))
    assert main(shlex.split(VERBS[verb].example.partition(" > ")[0])[1:]) == 130
    goes_on = verb in ("train", "graft", "prepare", "measure", "eval")
    assert capsys.readouterr().err == (
        "interrupted; the same command goes on from here\n" if goes_on else "interrupted\n"
    )


def test_every_verb_is_asked_for_a_missing_file() -> None:
    assert set(MISSING) | WITHOUT_FILES == set(VERBS)


def test_without_a_verb_the_whole_help_is_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    message = said([], capsys)
    assert message.startswith("usage: braid")
    assert "Pretrain a model" in message
    assert said(["--verson"], capsys).startswith("braid has no option '--verson'. Did you mean '--version'?")


def test_the_exit_codes_of_the_help_are_those_of_the_code() -> None:
    stated = {int(code) for code in re.findall(r"^  (\d+) ", EXIT_CODES, re.MULTILINE)}
    assert stated == {0, 1, RANK_LOST, cli.USER_ERROR, cli.INTERRUPTED, cli.READER_GONE}
    faults = (ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    assert {int(code) for code in re.findall(r"\| (\d+) \|$", faults, re.MULTILINE)} <= stated
