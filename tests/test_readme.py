"""The README is true: its commands parse, its run file loads, its example message and its map are the real ones."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from lm.cli import VERBS, _parser, main
from lm.errors import UserError
from lm.pattern import expand
from lm.run_file import load_run_file

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = README + (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGES, re.DOTALL)


def commands() -> list[list[str]]:
    lines = [line.split(" #")[0].split(" > ")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line]


def run_file_arguments(command: list[str]) -> list[str]:
    """What follows the script or the verb."""
    return command[command.index("train.py") + 1 :] if "train.py" in command else command[2:]


def test_the_two_commands_come_first() -> None:
    assert commands()[:2] == [["make", "quickstart"], ["make", "test"]]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_command_of_the_readme_is_one_that_exists(command: list[str], smollm2: Path) -> None:
    program = command[0]
    if program == "make":
        assert re.search(rf"^{command[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program == ".":
        assert command[1] == ".venv/bin/activate"
    else:
        assert program in ("braid", "python", "torchrun", "deepspeed")
        verb = command[1] if program == "braid" else "train"
        arguments = run_file_arguments(command)
        chosen = _parser().parse_args([verb, *arguments])
        if arguments and "config" in chosen:
            overrides = [text.replace("base.path=SmolLM2-135M", f"base.path={smollm2}") for text in chosen.overrides]
            if overrides != chosen.overrides:
                overrides.append("data.tokenizer={kind: bytes}")  # the folder holds none
            load_run_file(ROOT / chosen.config, overrides)


def test_every_verb_is_shown() -> None:
    assert {command[1] for command in commands() if command[0] == "braid"} == set(VERBS)


def test_the_example_run_file_loads(tmp_path: Path) -> None:
    (example,) = blocks("yaml")
    path = tmp_path / "run.yaml"
    path.write_text(example)
    run = load_run_file(path, ["model.mixers.rat.chunk_size=32"])
    assert run.model.layer_names == ["rat", "local"] * 3 + ["ls", "global"]
    assert run.optimizer.lr == 3e-3


def test_the_shown_mistake_is_answered_as_shown(tmp_path: Path) -> None:
    (example,) = blocks("yaml")
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


def test_every_mixer_is_in_the_table() -> None:
    schema = load_run_file(ROOT / "configs" / "quickstart.yaml").model
    for mixer in schema.mixers.values():
        assert f"| `{mixer.kind}` |" in README


def test_every_path_of_the_map_exists() -> None:
    paths = re.findall(r"^\| `([^`]+)` \|", README.partition("## Map")[2], re.MULTILINE)
    assert len(paths) > 10
    for path in [*paths, *re.findall(r"`((?:docs|tests|configs|lm|kernels)/[\w./-]+)`", PAGES)]:
        assert (ROOT / path).exists(), path


def test_the_sections_of_the_example_are_all_sections() -> None:
    (example,) = blocks("yaml")
    assert set(yaml.safe_load(example)) == {"model", "data", "train", "optimizer", "deepspeed", "log"}


def test_the_commands_work_one_after_another(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The README's way from a configuration to generated text, with everything made small."""
    run, exported = tmp_path / "run", tmp_path / "exported"
    config = [
        str(ROOT / "configs" / "quickstart.yaml"),
        f"data.sources.0.path={ROOT / 'lm'}",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.tokenizer.vocab_size=400",
        "data.sequence_length=64",
        "data.validation.fraction=0.1",
        f"train.output_dir={run}",
        "train.global_batch_tokens=128",
        "train.micro_batch_size=2",
        "train.sample_tokens=5",
        "log.wandb=disabled",
    ]
    assert main(["plan", *config]) == 0
    assert main(["prepare", *config]) == 0
    assert main(["train", *config, "train.steps=2"]) == 0
    assert (run / "report.html").is_file()
    assert main(["train", *config, "train.steps=2"]) == 0
    assert "is complete" in capsys.readouterr().out
    assert main(["export", str(run), str(exported)]) == 0
    for folder in (exported, run / "model"):
        assert main(["generate", str(folder), "--prompt", "import ", "--max-new-tokens", "4", "--greedy"]) == 0
    assert main(["import", str(exported), str(tmp_path / "imported")]) == 2  # it is Braid's already
    assert main(["schema"]) == 0
