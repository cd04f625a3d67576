"""Words of `braid eval` and the options that they set."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from eval.options import EvaluationOptions
from lm.cli import main


def test_the_help_states_the_defaults_of_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    values = {name: field.default for name, field in EvaluationOptions.model_fields.items()}
    stated = {f"--{name.replace('_', '-')}": value for name, value in values.items() if value not in (None, ())}
    assert len(stated) == 8
    for option, value in stated.items():
        said = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        found = re.search(rf"{option} [^-(]*\(default: ([^)]*)\)", text)
        assert found, option
        assert found[1].replace(" ", "") == said, option


def test_messages_name_options_as_they_are_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "records.jsonl").write_text('{"body": "words"}\n')
    (tmp_path / "bad.jsonl").write_text("rubbish")
    nowhere = str(tmp_path / "nowhere")
    for words, said in (
        (["--perplexity", str(tmp_path / "records.jsonl")], r"--text-field: '.*' has no field 'text' in line 1 .*body"),
        (["--perplexity", str(tmp_path / "bad.jsonl")], r"--perplexity: '.*' cannot be read at line 1 .* Repair the"),
        (["--perplexity", nowhere], r"--perplexity: '.*nowhere' does not exist\."),
        (["--haystack", nowhere], r"--haystack: '.*nowhere' does not exist\."),
        (["--tasks", "qa_1", "--squad", nowhere], r"--squad: '.*nowhere' cannot be read: No such file"),
        (["--text-field", "body"], r"braid eval: --text-field is for --perplexity and --haystack"),
    ):
        assert main(["eval", nowhere, *words]) == 2
        message = capsys.readouterr().err
        assert re.match(said, message), message
        assert "bad_records" not in message
    assert main(["eval", nowhere, "--perplexity", str(tmp_path / "records.jsonl"), "--text-field", "body"]) == 2
    assert capsys.readouterr().err.startswith(f"{nowhere}: ")  # read, and then comes the model
