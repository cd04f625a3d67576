"""The recall benchmark: one task for all models, and figures that are those of the runs."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from benchmarks import mqar
from lm.run_file import load_run_file


@pytest.mark.parametrize("path", mqar.configs(), ids=lambda path: path.stem)
def test_models_differ_and_nothing_else_does(path: Path) -> None:
    run, first = load_run_file(path), load_run_file(mqar.CONFIGS / "global.yaml")
    for section in ("data", "optimizer", "deepspeed", "log"):
        assert getattr(run, section) == getattr(first, section)
    assert run.train == first.train.model_copy(update={"output_dir": Path("runs/mqar") / path.stem})
    assert run.model.model_copy(update={"mixers": first.model.mixers, "layers": first.model.layers}) == first.model
    assert {mixer.short_conv for mixer in run.model.mixers.values()} == {None if "no-conv" in path.stem else 4}
    assert path.read_text().startswith("# ")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What runs would leave: model n of the list has an accuracy of n / 10 + seed / 100."""

    def leave(config: Path, seed: int, folder: Path) -> None:
        folder.mkdir(parents=True)
        accuracy = mqar.configs().index(config) / 10 + seed / 100
        plan = {"parameters": 1000, "cache_bytes": 4096, "layers": [{"reach": 7}, {"reach": 13}]}
        (folder / "plan.json").write_text(json.dumps(plan))
        (folder / "evaluation.json").write_text(json.dumps({"accuracy": accuracy}))
        steps = [(1, {}), (2, {"validation_accuracy": 0.989}), (3, {}), (4, {"validation_accuracy": 0.99 + seed})]
        records = [json.dumps({"step": step, "step_seconds": 0.5, **more}) for step, more in steps]
        (folder / "metrics.jsonl").write_text("\n".join(records) + "\n")

    monkeypatch.setattr(mqar, "train", leave)
    return tmp_path / "runs"


def test_the_table_the_file_and_the_chart_say_what_the_runs_left(runs: Path, tmp_path, monkeypatch, capsys) -> None:
    svg, figures = tmp_path / "mqar.svg", tmp_path / "mqar.json"
    monkeypatch.setattr(
        sys, "argv", ["mqar", "--seeds", "2", "--runs", str(runs), "--svg", str(svg), "--json", str(figures)]
    )
    mqar.main()
    found = json.loads(figures.read_text())
    names = [path.stem for path in reversed(mqar.configs())]
    assert [result["name"] for result in found] == names
    last = len(names) - 1
    assert found[0]["accuracies"] == [last / 10, last / 10 + 0.01]
    assert (found[0]["solved"], found[0]["seconds"], found[0]["cache_floats"]) == ([4, 4], [2.0, 2.0], 1024)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows[0].startswith(f"| {names[0]} | `")
    assert f"| {last / 10 + 0.005:.3f} | {last / 10:.3f} to {last / 10 + 0.01:.3f} | 4, 4 | 1,024 | 1,000 |" in rows[0]
    drawn = [text.text for text in ElementTree.parse(svg).iter() if text.get("class") == "name"]
    assert drawn == names


def test_a_run_is_a_command_of_one_thread_with_its_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(subprocess, "run", lambda *args, **more: calls.append((*args, more)))
    mqar.train(mqar.CONFIGS / "ls.yaml", 7, tmp_path / "out")
    ((command, more),) = calls
    assert command[:4] == [sys.executable, "-m", "lm", "train"]
    run = load_run_file(command[4], command[5:])
    assert (run.train.seed, run.data.seed, run.data.validation.seed) == (7, 7, 0)
    assert run.train.output_dir == tmp_path / "out"
    assert more["check"]
    assert more["env"]["OMP_NUM_THREADS"] == "1"
