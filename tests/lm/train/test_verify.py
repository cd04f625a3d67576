"""`braid verify`: a step replayed is the step that was, and what is not is said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lm.cli import main
from lm.errors import UserError
from lm.run_file import RunFile, load_run_file
from lm.train import guard, precision
from lm.train.loop import train
from lm.train.verify import verify

MakeRun = Callable[..., RunFile]


@pytest.fixture(scope="module")
def whole(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("verified") / "out"
    train(load_run_file(run_path, [f"train.output_dir={output}", "train.steps=10", "train.sample_tokens=0"]))
    return output


def contents(folder: Path) -> dict[str, bytes | None]:
    """All names below the folder, with the bytes of files."""
    found = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in found}


def test_a_run_is_verified_to_the_bit_and_left_as_it_is(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(whole)
    assert main(["verify", str(whole)]) == 0
    said = capsys.readouterr().out
    assert "step 9 replayed from the checkpoint before it; to agree to the bit" in said
    assert said.count("identical") == 3
    assert contents(whole) == before


def test_called_elsewhere_it_says_where_the_paths_count_from(
    whole: Path, run_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    folder, config, corpus = home / "runs" / "mine", home / "runs" / "mine" / "run.yaml", run_path.parent / "corpus"
    shutil.copytree(whole, folder)
    shutil.copytree(corpus, home / "texts")
    written = config.read_text().replace(str(corpus), "texts").replace(str(whole), "runs/mine")
    config.write_text(written)
    monkeypatch.chdir(tmp_path)
    assert main(["verify", str(folder)]) == 2
    said = capsys.readouterr().err
    assert "data.sources.0.path: 'texts' does not exist" in said
    assert f"call it in {home}, where the run was made" in said
    config.write_text(written.replace("runs/mine", str(tmp_path / "moved")))
    assert main(["verify", "home/runs/mine"]) == 2
    assert "call it where the run was made, or give the paths" in capsys.readouterr().err
    monkeypatch.chdir(home)
    assert main(["verify", str(folder)]) == 0
    assert main(["verify", str(folder), "data.sources.0.path=none"]) == 2
    assert "Relative paths" not in capsys.readouterr().err


@pytest.mark.parametrize("action", ["warn", "skip", "rewind"])
def test_a_spike_in_a_replay_changes_nothing(whole: Path, monkeypatch: pytest.MonkeyPatch, action: str) -> None:
    """A guard that the run did not have holds the step for a spike, and the step is one of those to be traced."""
    monkeypatch.setattr(guard, "spread", lambda window: (0.0, 1e-9))
    before = contents(whole)
    own = [f"train.output_dir={whole}", f"guard={{action: {action}, window: 4, warmup_steps: 2}}", "train.profile=[9]"]
    assert verify(load_run_file(whole / "run.yaml", own), 8).holds
    assert contents(whole) == before


def test_another_stage_on_as_many_ranks_agrees_to_the_bit_in_fp32(whole: Path) -> None:
    run = load_run_file(whole / "run.yaml", [f"train.output_dir={whole}", "deepspeed.zero_stage=0"])
    assert verify(run, 8).holds


def test_ranks_and_precision_are_looked_at_as_training_does(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = f"train.output_dir={whole}"
    with pytest.raises(UserError, match="1 rank cannot form groups of 2 that share a sequence"):
        verify(load_run_file(whole / "run.yaml", [own, "train.sequence_parallel=2"]))
    monkeypatch.setattr(precision, "_has_fp16", lambda: False)
    with pytest.raises(UserError, match=r"train\.precision: fp16 needs a GPU"):
        verify(load_run_file(whole / "run.yaml", [own, "train.precision=fp16"]))


def test_a_difference_is_said(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "out"
    shutil.copytree(whole, copy)
    metrics = copy / "metrics.jsonl"
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    lines[8]["loss"] += 1e-9
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(copy), "--step", "8"])
    assert ended.value.code == 1
    assert "DIFFERS" in capsys.readouterr().out


def test_what_cannot_be_verified_is_said(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(whole), "--step", "10"]) == 2
    assert "of those can be verified: 8" in capsys.readouterr().err
    assert main(["verify", str(tmp_path)]) == 2
    assert "has no run.yaml" in capsys.readouterr().err


def test_what_changed_is_named(whole: Path, make_run: MakeRun, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(make_run().data.sources[0].path, corpus)
    (corpus / "3.txt").write_text("another text")
    own = f"train.output_dir={whole}"
    with pytest.raises(UserError, match=r"data\.sources\.0.*: the text is not what the run in"):
        verify(load_run_file(whole / "run.yaml", [own, f"data.sources.0.path={corpus}"]))
    with pytest.raises(UserError, match=r"model\.layers was rat local ls s2 and is now rat local ls ls"):
        verify(load_run_file(whole / "run.yaml", [own, "model.layers=rat local ls ls"]))
