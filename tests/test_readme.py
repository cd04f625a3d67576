"""The README is true: its run file, its example message and its map are real. See test_docs.py for the rest."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from lm.errors import UserError
from lm.model.mixers import MIXERS
from lm.pattern import expand
from lm.run_file import load_run_file

from .documentation import commands, fences

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_two_commands_come_first() -> None:
    assert [command.words for command in commands()[:2]] == [("make", "quickstart"), ("make", "test")]


def test_the_example_run_file_loads(tmp_path: Path) -> None:
    (example,) = fences(ROOT / "README.md", "yaml")
    path = tmp_path / "run.yaml"
    path.write_text(example)
    run = load_run_file(path, ["model.mixers.rat.chunk_size=32"])
    assert run.model.layer_names == ["rat", "local"] * 3 + ["ls", "global"]
    assert run.optimizer.lr == 3e-3


def test_the_shown_mistake_is_answered_as_shown(tmp_path: Path) -> None:
    (example,) = fences(ROOT / "README.md", "yaml")
    (shown,) = re.findall(r"```\n('locl'.*?)\n```", README, re.DOTALL)
    path = tmp_path / "run.yaml"
    path.write_text(example.replace("(rat local)*3", "(rat locl)*3"))
    with pytest.raises(UserError) as caught:
        load_run_file(path)
    assert str(caught.value).endswith(shown)


def test_the_pattern_of_fifteen_layers() -> None:
    pattern = "((rat local)*2 global)*3"
    assert f"`{pattern}` is fifteen layers" in README
    assert len(expand(pattern, ["rat", "local", "global"])) == 15


def test_the_table_of_mixers_has_those_of_the_configurations_and_no_others() -> None:
    kinds = set(re.findall(r"^\| `(\w+)` \|", README.partition("## Two commands")[0], re.MULTILINE))
    used = re.findall(r"kind: (\w+)", "".join(path.read_text() for path in (ROOT / "configs").rglob("*.yaml")))
    assert set(used) & set(MIXERS) <= kinds <= set(MIXERS)


def test_every_path_of_the_map_exists() -> None:
    paths = re.findall(r"^\| `([^`]+)` \|", README.partition("## Map")[2], re.MULTILINE)
    assert len(paths) > 10
    for path in paths:
        assert (ROOT / path).exists(), path


def test_the_sections_of_the_example_are_all_sections() -> None:
    (example,) = fences(ROOT / "README.md", "yaml")
    assert set(yaml.safe_load(example)) == {"model", "data", "train", "optimizer", "deepspeed", "log"}
