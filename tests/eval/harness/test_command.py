"""`braid eval MODEL --harness TASKS`, from the words to the files."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lm.cli import main


def test_the_harness_own_files_are_written(
    save_model: Callable[..., None],
    task_folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # no repository
    save_model("hybrid", tmp_path / "tiny")
    capfd.readouterr()
    words = ["eval", str(tmp_path / "tiny"), "--harness", "choose,write", "--include-path", str(task_folder)]
    words += ["--limit", "3", "--log-samples", "--gen-kwargs", '{"max_gen_toks": 4}', "--truncation", "middle"]
    assert main([*words, "--output", str(tmp_path / "out")]) == 0
    (written,) = (tmp_path / "out" / "tiny").glob("results_*.json")
    results = json.loads(written.read_text())
    assert results["n-samples"]["write"] == {"original": 7, "effective": 3}
    assert results["configs"]["write"]["generation_kwargs"]["max_gen_toks"] == 4
    assert results["config"]["truncation"] == "middle"
    assert len(list((tmp_path / "out" / "tiny").glob("samples_*.jsonl"))) == 2
    figure = results["results"]["choose"]["acc,none"]
    said = capfd.readouterr()
    (line,) = [line for line in said.out.splitlines() if "acc" in line.split()]
    assert {"choose", f"{figure:.4f}"} <= set(line.split())
    assert "fatal" not in said.err
    bars = {line.partition(":")[0] for line in re.split(r"[\r\n]", said.err) if "%|" in line}
    assert bars == {"loglikelihood", "generate_until"}


def test_mistakes_end_without_a_traceback(
    save_model: Callable[..., None], task_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model("llama", tmp_path / "tiny")
    words = ["eval", str(tmp_path / "tiny"), "--harness", "write", "--include-path", str(task_folder)]
    words += ["--output", str(tmp_path / "out")]
    for more, said in (
        (["--apply-chat-template"], "has no chat template"),
        (["--gen-kwargs", '{"do_sample": true, "temperature": 1.0}'], "do_sample"),
        (["--lengths", "512"], "--lengths is for the offline suite or LongBench, not for --harness"),
    ):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err
    for more, said in (
        (["--gen-kwargs", "max_gen_toks=3"], "argument --gen-kwargs"),
        (["--metadata", "[4096]"], "no object of names and values"),
        (["--limit", "2.5"], "neither a share below 1 nor a whole number"),
    ):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err
