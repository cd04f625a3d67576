"""Words of `braid eval` and the options that they set."""

from __future__ import annotations

import re

import pytest

from eval.options import EvaluationOptions
from lm.cli import main


def test_the_help_states_the_defaults_of_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["eval", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    values = {name: field.default for name, field in EvaluationOptions.model_fields.items()}
    stated = {f"--{name.replace('_', '-')}": value for name, value in values.items() if value not in (None, ())}
    assert len(stated) == 7
    for option, value in stated.items():
        said = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        found = re.search(rf"{option} [^-(]*\(default: ([^)]*)\)", text)
        assert found, option
        assert found[1].replace(" ", "") == said, option
