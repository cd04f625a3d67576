"""Every command of the documentation is carried out, or read by the parser that would read it; the rest is true, too.

A new command, run file, link or key in a page is checked by itself.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from lm.cli import main, parser
from lm.run_file import json_schema, load_run_file
from lm.verbs import VERBS

from .documentation import GENERATED, PAGES, ROOT, SCRIPTS, Command, commands, fences, inline_code, keys_of, prose

COMMANDS = commands()
TINY = [
    "data.sources=[{path: texts}]",
    "data.tokenizer.vocab_size=400",
    "data.sequence_length=64",
    "data.validation.fraction=0.1",
    "train.steps=2",
    "train.checkpoint_every=1",
    "train.global_batch_tokens=128",
    "train.micro_batch_size=2",
    "train.sample_tokens=5",
    "observe.recall_every=null",
    "log.wandb=disabled",
]
# Words behind a command that make it small; what is given twice counts as it is given last.
SMALL = {
    "prepare": [*TINY, "--processes", "1"],
    "data": [*TINY, "--batch", "1"],
    "generate": ["--max-new-tokens", "3"],
    "eval": ["--lengths", "512", "--samples", "1", "--tasks", "passkey"],
}
# What is carried out. Training, grafting, measuring, the harness, LongBench and benchmarks are by tests of their own.
RUNS = {"plan", "prepare", "data", "watch", "import", "export", "generate", "eval", "verify", "backends", "schema"}
STAND_INS = {
    "CONFIG": "configs/quickstart.yaml",
    "RUN_FILE": "configs/quickstart.yaml",
    "my.yaml": "configs/quickstart.yaml",
    "mine.yaml": "configs/quickstart.yaml",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Iterator[Path]:
    """A folder with what the commands name, as small as can be: texts, a run, its export, a Llama, results."""
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("world")
    (root / "configs").symlink_to(ROOT / "configs")
    (root / "SmolLM2-135M").symlink_to(smollm2)
    shutil.copytree(ROOT / "lm" / "model", root / "texts", ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("books", "my/texts"):
        shutil.copytree(ROOT / "docs", root / folder, ignore=shutil.ignore_patterns("*.svg", "*.json"))
    shutil.copy(ROOT / "README.md", root / "books" / "readme.txt")
    (root / "more.jsonl").write_text('{"text": "' + "more " * 200 + '"}\n')
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "vocab_size": 400}
    LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=16)).save_pretrained(root / "path/to/llama")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["train", "configs/quickstart.yaml", *TINY]) == 0
        (root / "runs" / "mine").symlink_to(root / "runs" / "quickstart")
        assert main(["export", "runs/quickstart", "exports/quickstart"]) == 0
        for name in "ab":
            assert main(["eval", "exports/quickstart", "--output", f"runs/evaluations/{name}", *SMALL["eval"]]) == 0
        shutil.copytree("exports/quickstart", "MODEL")
        yield root


def test_there_are_commands_in_every_page_that_is_a_guide() -> None:
    guides = ("README", "pretrain", "data", "extend", "graft", "evaluate", "launch", "performance", "add-a-mixer")
    assert {f"{name}.md" for name in guides} <= {command.page for command in COMMANDS}
    assert len(COMMANDS) > 70


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_what_the_parser_takes(command: Command, smollm2: Path, tmp_path: Path) -> None:
    program, *words = command.words
    check = globals().get(f"_{program.replace('.', 'activate')}")
    assert check, f"{program}: say in this test how it is checked"
    check(words, smollm2, tmp_path)


def _braid(words: list[str], smollm2: Path, tmp_path: Path) -> None:
    chosen = parser().parse_args([STAND_INS.get(word, word) for word in words])
    if "config" not in chosen:
        return
    overrides = [re.sub(r"^base\.path=.*", f"base.path={smollm2}", text) for text in chosen.overrides]
    if "\nbase:" in (ROOT / chosen.config).read_text():
        overrides += [f"base.path={smollm2}", "data.tokenizer={kind: bytes}"]  # the folder holds none
    load_run_file(ROOT / chosen.config, overrides)


def _python(words: list[str], smollm2: Path, tmp_path: Path) -> None:
    if words[0] == "train.py":
        _braid(["train", *words[1:]], smollm2, tmp_path)
    elif words[:2] == ["-m", "eval"]:
        _braid(["eval", *words[2:]], smollm2, tmp_path)
    else:
        assert words[0] == "-m"
        _module(words[1], words[2:])


def _module(name: str, words: list[str]) -> None:
    """A program with a parser of its own, run until it has parsed."""

    class ParsedError(Exception):
        pass

    read = argparse.ArgumentParser.parse_args

    def parse(self: argparse.ArgumentParser, *given: Any) -> None:
        read(self, *given)
        raise ParsedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *words])
        patch.setattr(argparse.ArgumentParser, "parse_args", parse)
        with pytest.raises(ParsedError):
            importlib.import_module(name).main()


def _torchrun(words: list[str], smollm2: Path, tmp_path: Path) -> None:
    from torch.distributed.run import get_args_parser

    chosen = get_args_parser().parse_args(words)
    _python(
        [*(["-m"] if chosen.module else []), chosen.training_script, *chosen.training_script_args], smollm2, tmp_path
    )


def _deepspeed(words: list[str], smollm2: Path, tmp_path: Path) -> None:
    from deepspeed.launcher.runner import parse_args

    chosen = parse_args(words)
    _python([chosen.user_script, *chosen.user_args], smollm2, tmp_path)


def _sbatch(words: list[str], smollm2: Path, tmp_path: Path) -> None:
    script, folder, *rest = [word for word in words if not word.startswith("--")]
    assert folder.startswith("runs/")
    subprocess.run(["bash", "-n", ROOT / script], check=True)
    _braid(["train", *rest], smollm2, tmp_path)


def _make(words: list[str], smollm2: Path, tmp_path: Path) -> None:
    subprocess.run(["make", "--dry-run", "--always-make", *words], cwd=ROOT, check=True, capture_output=True)


def _pip(words: list[str], smollm2: Path, tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (name, extra) = re.fullmatch(r"([\w-]+)\[(\w+)\]", words[-1]).groups()  # type: ignore[union-attr]
    assert name == project["name"]
    assert extra in project["optional-dependencies"]


def _pytest(words: list[str], smollm2: Path, tmp_path: Path) -> None:
    assert (ROOT / words[0]).exists()


def _activate(words: list[str], smollm2: Path, tmp_path: Path) -> None:
    assert words == [".venv/bin/activate"]


def carried_out() -> list[Command]:
    """The commands that run here: each once, whatever pages it is on."""
    chosen: dict[tuple[str, ...], Command] = {}
    for command in COMMANDS:
        program, *words = command.words
        if program == "braid" and words[0] in RUNS and not {"--harness", "--longbench", "--adapter"} & set(words):
            chosen.setdefault(command.words, command)
    return list(chosen.values())


def test_the_python_of_the_readme_works(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (program,) = fences(ROOT / "README.md", "python")
    exec(program, {})
    assert capsys.readouterr().out


@pytest.mark.parametrize("command", carried_out(), ids=str)
def test_a_command_works(command: Command, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    verb, *words = [STAND_INS.get(word, word) for word in command.words[1:]]
    words = [found for word in words for found in (sorted(map(str, Path().glob(word))) if "*.txt" in word else [word])]
    if verb == "export" and not Path(words[0]).exists():
        pytest.skip("a run that takes long; exports of its kind have tests of their own")
    if verb == "eval" and words[0] == "SmolLM2-135M":
        words[0] = "MODEL"
    if "base.path=SmolLM2-135M" in words or "base.path=SmolLM2-135M-Instruct.gguf" in words:
        words += ["base.path=SmolLM2-135M", "data.tokenizer={kind: bytes}"]
    small = [] if words[:1] == ["compare"] else SMALL.get(verb, [])
    if "--perplexity" in words:
        small = ["--lengths", "64", "--text-tokens", "300"]
    if verb == "eval" and words[0] != "compare":
        small = [*small, "--output", str(tmp_path)]
    assert main([verb, *words, *small]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


def test_every_verb_is_shown_in_the_readme() -> None:
    shown = {command.words[1] for command in COMMANDS if command.page == "README.md" and command.words[0] == "braid"}
    assert shown == set(VERBS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_named_in_a_sentence_exist(page: Path) -> None:
    for code in inline_code(page):
        program, *words = code.split()
        if program == "braid" and words and words[0] not in ("VERB", "…", "--help"):
            assert words[0] in VERBS, code
            options = [word for word in words if word.startswith("--")]
            (verb_parser,) = [
                action.choices[words[0]] for action in parser()._actions if isinstance(action.choices, dict)
            ]
            assert set(options) <= set(verb_parser._option_string_actions), code
        elif code.startswith("python -m benchmarks."):
            _module(words[1], words[2:])
        elif code.startswith("pip install '"):
            _pip([words[-1].strip("'")], page, page)


def run_files() -> list[tuple[str, str]]:
    return [(page.name, text) for page in PAGES for text in fences(page, "yaml")]


@pytest.mark.parametrize(("page", "text"), run_files(), ids=[f"{n}-{name}" for n, (name, _) in enumerate(run_files())])
def test_a_run_file_of_a_page_loads(page: str, text: str, smollm2: Path, tmp_path: Path) -> None:
    """A part of one is put into a run file that has the rest."""
    values = yaml.safe_load(text)
    if "layers" in values:
        values = {"model": values}
    based = bool({"base", "extend", "lora", "measure", "graft"} & set(values))
    if "model" not in values or "data" not in values:
        rest = "graft-smollm2" if "graft" in values else "extend-smollm2" if based else "quickstart"
        long = {"train": {"steps": 1_000_000}}  # a part may be of a longer run than the rest of it
        values = _merged(_merged(yaml.safe_load((ROOT / "configs" / f"{rest}.yaml").read_text()), long), values)
    if "chat" in [source.get("kind") for source in values["data"]["sources"]]:
        values["data"]["tokenizer"] = {"kind": "huggingface", "path": str(chat_tokenizer(tmp_path / "tokenizer"))}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values))
    load_run_file(path, [f"base.path={smollm2}", "data.tokenizer={kind: bytes}"] if based else [])


def chat_tokenizer(folder: Path) -> Path:
    """A tokenizer with a chat template, which conversations ask for."""
    words = Tokenizer(WordLevel({"</s>": 0, "word": 1}, "</s>"))
    PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", chat_template="{{ messages[0].content }}"
    ).save_pretrained(folder)
    return folder


def _merged(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict) or new.get("kind", old.get("kind")) != old.get("kind"):
        return new
    return old | {key: _merged(old.get(key), value) for key, value in new.items()}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    text = prose(page)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://", "#")):
            assert (page.parent / target.partition("#")[0]).exists(), target
    for path in re.findall(r"`((?:docs|tests|configs|lm|kernels|benchmarks)/[\w./-]+|eval/[\w/]+\.py)`", text):
        assert (ROOT / path).exists() or (ROOT / "tests" / path).exists(), path


@pytest.mark.parametrize("page", [page for page in PAGES if page != GENERATED], ids=lambda page: page.name)
def test_keys_named_in_a_sentence_exist(page: Path) -> None:
    schema = json_schema()
    sections = {
        name for kind in ("RunFile", "ExtensionFile", "GraftFile") for name in schema["$defs"][kind]["properties"]
    }
    for code in inline_code(page):
        key = re.fullmatch(r"([a-z_]+(?:\.[a-z_0-9]+)+)(?:=.*|: .*)?", code)
        if key and key[1].split(".")[0] in sections and not key[1].endswith((".jsonl", ".py", ".zip")):
            assert keys_of(schema, key[1].split(".")), code


def test_a_key_that_does_not_exist_is_found() -> None:
    assert not keys_of(json_schema(), ["train", "stesp"])
    assert keys_of(json_schema(), ["data", "sources", "0", "path"])


def test_scripts_are_shell() -> None:
    for script in SCRIPTS:
        if script.suffix == ".sbatch":
            subprocess.run(["bash", "-n", script], check=True)
