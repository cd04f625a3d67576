"""The configuration reference is up to date, and has every key."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm.cli import main
from lm.option_reference import reference
from lm.run_file import json_schema

REFERENCE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_reference_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "--markdown"]) == 0
    assert capsys.readouterr().out == REFERENCE.read_text(encoding="utf-8"), (
        "write it again: braid schema --markdown > docs/configuration.md"
    )


def test_every_key_has_a_row_with_its_description() -> None:
    text = reference(json_schema())
    for name, definition in json_schema()["$defs"].items():
        if name not in ("RunFile", "ExtensionFile", "GraftFile"):
            assert definition["description"] in text
            for key, value in definition["properties"].items():
                assert f"| `{key}` | " in text
                assert value.get("description", "").replace("|", "\\|") in text


@pytest.mark.parametrize(
    "row",
    [
        "| `steps` | integer ≥ 1 | required | Optimizer steps of the whole run. |",
        "| `chunk_size` | integer ≥ 1 | `16` | Tokens per chunk",
        '| `precision` | `fp32`, `bf16`, `fp16` | `"fp32"` | ',
        "| `sources` | list of: section | required | ",
        "## `data.sources.0`, kind `text`\n",
        "## `model.mixers.NAME`, kind `rat`\n",
    ],
)
def test_a_row_says_what_is_allowed_and_the_default(row: str) -> None:
    assert row in reference(json_schema())
