"""`braid eval MODEL --longbench DATA`, from the words to the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lm.cli import main


@pytest.fixture
def folder(save_model: Callable[..., None], tmp_path: Path) -> Path:
    save_model("llama", tmp_path / "tiny", max_position_embeddings=900, initializer_range=0.1)
    return tmp_path / "tiny"


def test_a_folder_of_results_with_the_benchmarks_means(
    folder: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(folder), "--longbench", str(copy), "--output", str(tmp_path / "out")]
    words += ["--longbench-tasks", "lcc,repobench-p,trec", "--samples", "2"]
    assert main(words) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["lengths"] == [900]
    scores = {cell["task"]: cell for cell in results["scores"]}
    assert {name: (cell["metric"], cell["n"]) for name, cell in scores.items()} == {
        "trec": ("classification", 2),
        "lcc": ("code_similarity", 2),
        "repobench-p": ("code_similarity", 2),
    }
    (found,) = json.loads((tmp_path / "out" / "longbench.json").read_text()).values()
    assert found["scores"] == {name: pytest.approx(100 * cell["mean"], abs=0.01) for name, cell in scores.items()}
    code = 50 * (scores["lcc"]["mean"] + scores["repobench-p"]["mean"])
    assert found["means"] == {
        "english": {"code": pytest.approx(code, abs=0.01)},
        "chinese": {"code": pytest.approx(code, abs=0.01)},
    }
    assert "LongBench in 900 tokens" in capsys.readouterr().out

    answers = (tmp_path / "out" / "samples.jsonl").read_bytes()
    moved = copy.rename(tmp_path / "moved")
    assert main([word if word != str(copy) else str(moved) for word in words]) == 0
    assert (tmp_path / "out" / "samples.jsonl").read_bytes() == answers

    rows = moved / "lcc.jsonl"
    rows.write_text(rows.read_text().replace("    return left", "    return right"))
    assert main([word if word != str(copy) else str(moved) for word in words]) == 2
    assert "sample 0 of lcc at 900 tokens was another one" in capsys.readouterr().err


def test_a_task_that_does_not_fit_is_left_out_and_missing_data_are_asked_for(
    folder: Path, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(folder), "--longbench", str(copy), "--longbench-tasks", "gov_report,lcc", "--samples", "1"]
    assert main([*words, "--lengths", "500", "--output", str(tmp_path / "out")]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [one["task"] for one in results["skipped"]] == ["gov_report"]
    assert main(["eval", str(folder), "--longbench", str(tmp_path / "none"), "--longbench-tasks", "lcc"]) == 2
    assert "LongBench is the file data.zip" in capsys.readouterr().err


def test_options_of_others_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["--longbench-e"], "--longbench-e is for --longbench"),
        (["--longbench", "x", "--seed", "0", "--squad", "x"], "--seed, --squad is for the offline suite"),
        (["--apply-chat-template"], "--apply-chat-template is for --longbench and --harness"),
        (["--longbench", "x", "--limit", "3"], "--limit is for --harness"),
    ):
        assert main(["eval", "model", *words]) == 2
        assert said in capsys.readouterr().err
