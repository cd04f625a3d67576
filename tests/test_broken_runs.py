"""Runs that fail only on what lies on disk end like those that fail on the run file: one message, before training."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def no_such_source(folder: Path) -> list[str]:
    return [f"data.sources=[{{path: {folder}/nowhere}}]"]


def empty_corpus(folder: Path) -> list[str]:
    (folder / "empty").mkdir()
    return [f"data.sources=[{{path: {folder}/empty}}]"]


def blank_corpus(folder: Path) -> list[str]:
    (folder / "blank.txt").write_text("")
    return [f"data.sources=[{{path: {folder}/blank.txt}}]"]


def binary_corpus(folder: Path) -> list[str]:
    (folder / "noise.txt").write_bytes(bytes(range(256)) * 40)
    return [f"data.sources=[{{path: {folder}/noise.txt}}]"]


def no_tokenizer(folder: Path) -> list[str]:
    return [f"data.tokenizer={{kind: sentencepiece, path: {folder}/none.model}}"]


def output_inside_a_file(folder: Path) -> list[str]:
    (folder / "file").write_text("")
    return [f"train.output_dir={folder}/file/run"]


CASES: list[tuple[Callable[[Path], list[str]], str]] = [
    (no_such_source, "data.sources"),
    (empty_corpus, "data.sources"),
    (blank_corpus, "data.sources"),
    (binary_corpus, "data.sources"),
    (no_tokenizer, "data.tokenizer.path"),
    (output_inside_a_file, "train.output_dir"),
]


@pytest.mark.launch
@pytest.mark.parametrize(("break_run", "key"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_what_lies_on_disk_cannot_work(tmp_path: Path, break_run: Callable[[Path], list[str]], key: str) -> None:
    overrides = [f"train.output_dir={tmp_path}/run", f"data.cache_dir={tmp_path}/cache", *break_run(tmp_path)]
    command = [sys.executable, "train.py", "configs/quickstart.yaml", "log.wandb=disabled", *overrides]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 2, ended.stderr
    assert key in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
