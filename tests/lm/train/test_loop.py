"""Whole runs in one process: what a user sees in the output folder, whatever happened on the way."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lm.data.prepare import prepare
from lm.data.tokenizers import load_tokenizer
from lm.errors import UserError
from lm.model.decoder import LanguageModel
from lm.run_file import RunFile
from lm.train import loop, manifest, writing
from lm.train.data_phase import require_whole_rows
from lm.train.format import short_number
from lm.train.guard import MAX_SKIPPED_IN_A_ROW
from lm.train.interrupt import Interruptible
from lm.train.log import RunLog, read_metrics
from lm.train.loop import train

MakeRun = Callable[..., RunFile]
Records = list[dict[str, Any]]
EXACT = ("step", "loss", "learning_rate", "grad_norm", "tokens", "targets", "skipped")


def exact(folder: Path) -> Records:
    """The metrics without what depends on the clock."""
    return [{key: record[key] for key in EXACT} for record in read_metrics(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def whole(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that nothing interrupted; only to be read."""
    from lm.run_file import load_run_file

    output = tmp_path_factory.mktemp("whole") / "out"
    train(load_run_file(run_path, [f"train.output_dir={output}", "train.evaluate_every=8"]))
    return output


def test_the_data_is_summed_up_in_one_line(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run("train.steps=1")
    prepared = prepare(run.data)
    tokens = prepared.statistics.tokens
    train(run)
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"{prepared.statistics.documents} documents, {short_number(tokens)} tokens; held out" in said
    assert f"the run reads 256 tokens, {short_number(256 / tokens)} epochs" in said


def test_a_run_leaves_everything_behind(whole: Path, make_run: MakeRun) -> None:
    records = read_metrics(whole / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 21))
    assert records[-1]["loss"] < records[0]["loss"] - 1
    assert [record["step"] for record in records if "validation_loss" in record] == [8, 16, 20]
    assert [manifest.step_of(folder) for folder in manifest.checkpoints(whole / "checkpoints")] == [20, 16]
    evaluation = json.loads((whole / "evaluation.json").read_text())
    assert evaluation["loss"] == records[-1]["validation_loss"]
    assert evaluation["baselines"].keys() == {"gzip -9", "xz -9", "token frequencies"}
    assert load_tokenizer(whole / "model").vocab_size == 258
    assert "</html>" in (whole / "report.html").read_text()


def test_the_saved_weights_are_the_trained_model(whole: Path, make_run: MakeRun) -> None:
    from lm.model.documents import Documents

    run = make_run()
    model = LanguageModel(run.model).eval()
    weights = load_file(whole / "model" / "model.safetensors")
    # A tied head is the embedding under another name, so it is kept once.
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["lm_head.weight"], [])
    validation = prepare(run.data).validation
    assert validation is not None
    batch = validation.batches.rows(range(validation.num_rows))
    with torch.no_grad():
        out = model(batch.tokens.flatten(), Documents.from_lengths(batch.lengths), batch.targets.flatten())
    loss = out.loss.item() / int((batch.targets != -100).sum())
    assert loss == pytest.approx(read_metrics(whole / "metrics.jsonl")[-1]["validation_loss"], rel=1e-5)


def test_a_complete_run_says_so_and_touches_nothing(
    whole: Path, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    train(make_run(f"train.output_dir={whole}", "train.evaluate_every=8"))
    assert "is complete: 20 of 20 steps\n" in capsys.readouterr().out
    train(make_run(f"train.output_dir={whole}", "train.evaluate_every=8", "optimizer.lr=0.5"))
    said = capsys.readouterr().out.replace("\n", " ")
    assert "is complete: 20 of 20 steps; without effect: optimizer.lr was 0.01 and is now 0.5" in said
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before


def test_stopping_after_any_step_changes_nothing(whole: Path, make_run: MakeRun, tmp_path: Path) -> None:
    """The run is cut off between two checkpoints, with a half-written line at the end of its metrics."""
    copy = begun_copy(whole, tmp_path / "out", steps=(16,))
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')
    train(make_run())
    assert exact(copy) == exact(whole)


def begun_copy(whole: Path, copy: Path, steps: tuple[int, ...]) -> Path:
    """The folder as it was when these checkpoints were the newest."""
    shutil.copytree(whole, copy)
    for name in ("complete.json", "evaluation.json"):
        (copy / name).unlink()
    for folder in manifest.checkpoints(copy / "checkpoints"):
        if manifest.step_of(folder) not in steps:
            shutil.rmtree(folder)
    return copy


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip_a_bit, truncate, Path.unlink])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    whole: Path, make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    copy = begun_copy(whole, tmp_path / "out", steps=(16, 20))
    damage(copy / "checkpoints" / "step-000020" / "state-00000.safetensors")
    train(make_run())
    said = capsys.readouterr().out.replace("\n", " ")
    assert "step-000020 is damaged: state-00000.safetensors" in said
    assert "going on from step 16" in said
    assert exact(copy) == exact(whole)
    assert manifest.damage(copy / "checkpoints" / "step-000020") is None


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_that_cannot_be_read_is_named_and_left(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that fails for a moment costs nothing that was to be kept for ever."""
    kept = ("train.checkpoint_every=1", "train.keep_every=1")
    train(make_run("train.steps=2", *kept))
    counters = tmp_path / "out" / "checkpoints" / "step-000001" / "counters.json"
    aside = counters.rename(tmp_path / "counters.json")
    counters.mkdir()
    train(make_run("train.steps=4", *kept))
    assert f"checkpoint {counters.parent} cannot be read" in capsys.readouterr().out
    counters.rmdir()
    aside.rename(counters)
    assert manifest.damage(counters.parent) is None


def test_where_every_checkpoint_is_damaged_nothing_is_begun_anew(
    whole: Path, make_run: MakeRun, tmp_path: Path
) -> None:
    copy = begun_copy(whole, tmp_path / "out", steps=(16, 20))
    for step in (16, 20):
        flip_a_bit(copy / "checkpoints" / f"step-0000{step}" / "state-00000.safetensors")
    before = contents(copy)
    with pytest.raises(UserError, match=r"(?s)every checkpoint .*step-000020: state.*step-000016: state.* from a copy"):
        train(make_run())
    assert contents(copy) == before


def test_a_checkpoint_of_another_version_is_left_alone(whole: Path, make_run: MakeRun, tmp_path: Path) -> None:
    copy = begun_copy(whole, tmp_path / "out", steps=(16, 20))
    listed = copy / "checkpoints" / "step-000020" / manifest.MANIFEST
    listed.write_text(listed.read_text().replace('"format": 1', '"format": 2'))
    before = contents(copy)
    with pytest.raises(UserError, match="format 2"):
        train(make_run())
    assert contents(copy) == before


def test_wandb_without_a_login_fails_before_data_is_prepared(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="wandb login"):
        train(make_run("log.wandb=online", f"data.cache_dir={tmp_path / 'cache'}"))
    assert not (tmp_path / "cache").exists()


def test_a_broken_metrics_file_is_named_before_data_is_prepared(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 1 is not a record"):
        train(make_run(f"data.cache_dir={tmp_path / 'cache'}"))
    assert not (tmp_path / "cache").exists()


def test_a_gpu_that_is_too_small_is_no_fault_of_ours(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it")

    monkeypatch.setattr(loop.Engine, "step", out_of_memory)
    with pytest.raises(UserError, match=r"(?s)^CUDA out of memory.*GiB\.\nWhat helps.* train\.micro_batch_size"):
        train(make_run())


def test_a_launcher_that_ends_while_data_is_prepared_is_missed(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, prepared = loop.prepare_on_all_ranks, []

    class Launcher:
        def __init__(self) -> None:
            self._there = not prepared

        def gone(self) -> bool:
            return self._there

    monkeypatch.setattr(loop, "Launcher", Launcher)
    monkeypatch.setattr(loop, "prepare_on_all_ranks", lambda *given: prepared.append(given) or real(*given))
    with pytest.raises(SystemExit) as ended:
        train(make_run())
    assert ended.value.code == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert "stopped by SIGTERM after step 0: there is no checkpoint; the same command begins anew" in said
    assert read_metrics(tmp_path / "out" / "metrics.jsonl") == []


def test_a_full_disk_keeps_the_checkpoint_before(
    whole: Path,
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    real, calls = writing.writing_tensors, []

    def full_at_step_8(path: Path, *rest: Any) -> Any:
        calls.append(path)
        if "step-000008" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, *rest)

    monkeypatch.setattr(writing, "writing_tensors", full_at_step_8)
    with pytest.raises(KeyboardInterrupt):
        train_until(make_run("train.asynchronous_checkpoints=false"), 10, monkeypatch)
    said = capsys.readouterr().out.replace("\n", " ")
    assert "step 8 was not written: No space left on device" in said
    assert "step-000004 is kept; trying again after step 9" in said
    folder = tmp_path / "out" / "checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-000004", "step-000009"]
    monkeypatch.undo()
    train(make_run())
    assert exact(tmp_path / "out") == exact(whole)


def test_on_a_full_disk_older_checkpoints_make_room(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, folder = writing.writing_tensors, tmp_path / "out" / "checkpoints"

    def room_for_two(path: Path, *rest: Any) -> Any:
        if len(manifest.checkpoints(folder)) >= 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return real(path, *rest)

    monkeypatch.setattr(writing, "writing_tensors", room_for_two)
    train(make_run("train.steps=14", "train.sample_tokens=0"))
    assert "step-000004 made room for the next checkpoint" in capsys.readouterr().out.replace("\n", " ")
    kept = manifest.checkpoints(folder)
    assert manifest.step_of(kept[0]) == 14
    assert all(manifest.damage(path) is None for path in kept)


def train_until(run: RunFile, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trains, and raises KeyboardInterrupt before the record of `step` is written."""
    write = RunLog.write

    def stop(log: RunLog, record: dict[str, Any]) -> None:
        if record["step"] == step:
            raise KeyboardInterrupt
        write(log, record)

    monkeypatch.setattr(RunLog, "write", stop)
    train(run)


def test_more_steps_go_on_from_a_finished_run(whole: Path, make_run: MakeRun, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        train_until(make_run("train.steps=24"), 22, patch)
    assert not (tmp_path / "out" / "complete.json").exists()
    train(make_run("train.steps=24"))
    assert exact(tmp_path / "out")[:20] == exact(whole)
    assert [record["step"] for record in exact(tmp_path / "out")] == list(range(1, 25))


def test_changed_text_is_refused_and_moved_text_is_not(whole: Path, make_run: MakeRun, tmp_path: Path) -> None:
    copy = begun_copy(whole, tmp_path / "out", steps=(16,))
    corpus = tmp_path / "corpus"
    shutil.copytree(make_run().data.sources[0].path, corpus)
    text = (corpus / "3.txt").read_text()
    (corpus / "3.txt").write_text(text.replace("3", "4"))
    with pytest.raises(UserError, match="is not what the run in"):
        train(make_run(f"data.sources.0.path={corpus}"))
    (corpus / "3.txt").write_text(text)
    train(make_run(f"data.sources.0.path={corpus}"))
    assert exact(copy) == exact(whole)


def test_a_run_that_is_never_finite_ends_with_advice(make_run: MakeRun) -> None:
    with pytest.raises(UserError, match=f"last {MAX_SKIPPED_IN_A_ROW} steps"):
        train(make_run("optimizer.lr=1e30", "optimizer.schedule.warmup_steps=0", "train.steps=40"))


def test_ranks_that_cannot_share_the_batch_are_told_which_could(make_run: MakeRun) -> None:
    require_whole_rows(make_run(), 4)
    with pytest.raises(UserError, match="multiple of 96"):
        require_whole_rows(make_run(), 3)


@pytest.mark.launch
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_step_end_and_saves_it(
    whole: Path,
    make_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
) -> None:
    write = RunLog.write

    def signalled(log: RunLog, record: dict[str, Any]) -> None:
        write(log, record)
        if record["step"] == 6:
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # as the terminal and then the launcher do

    monkeypatch.setattr(RunLog, "write", signalled)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended:
        train(make_run())
    assert ended.value.code == 0
    assert signal.getsignal(number) is before
    said = capsys.readouterr().out.replace("\n", "")
    assert f"stopped by {number.name} after step 6" in said
    assert "step-000006 is kept; the same command goes on from there" in said
    monkeypatch.undo()
    train(make_run())
    assert exact(tmp_path / "out") == exact(whole)


def test_a_signal_in_an_evaluation_leaves_it_to_the_next_start(
    whole: Path, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = Interruptible.forward, []

    def signalled(model: Interruptible, batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return forward(model, batch)

    monkeypatch.setattr(Interruptible, "forward", signalled)
    with pytest.raises(SystemExit) as ended:
        train(make_run("train.evaluate_every=8"))
    assert ended.value.code == 0
    assert "validation_loss" not in read_metrics(tmp_path / "out" / "metrics.jsonl")[-1]
    assert [manifest.step_of(path) for path in manifest.checkpoints(tmp_path / "out" / "checkpoints")] == [8, 4]
    train(make_run("train.evaluate_every=8"))
    found, expected = (held_out(folder) for folder in (tmp_path / "out", whole))
    assert found == expected
    assert [step for step, _ in found] == [8, 16, 20]


def held_out(folder: Path) -> list[tuple[int, float]]:
    records = read_metrics(folder / "metrics.jsonl")
    return [(record["step"], record["validation_loss"]) for record in records if "validation_loss" in record]


def test_a_signal_after_the_last_step_leaves_the_rest_to_the_next_start(
    whole: Path, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = begun_copy(whole, tmp_path / "out", steps=(20,))
    shutil.rmtree(copy / "model")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "finish", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as ended:
            train(make_run())
    assert ended.value.code == 0
    assert not (copy / "complete.json").exists()
    train(make_run())
    assert (copy / "complete.json").exists()
    assert (copy / "model").exists()


@pytest.mark.launch
def test_killed_three_times_it_ends_as_if_nothing_had_happened(whole: Path, run_path: Path, tmp_path: Path) -> None:
    """SIGKILL between, and while, steps and checkpoints; the server below spares each start its imports."""
    from lm.cli import main

    spawning = multiprocessing.get_context("forkserver")
    spawning.set_forkserver_preload(["lm.train.loop", "lm.run_file", "deepspeed", "torch._dynamo"])
    output = tmp_path / "out"
    command = ["train", str(run_path), f"train.output_dir={output}", "train.evaluate_every=8"]
    exits = []
    for kill_after in (3, 9, 14, None):
        process = spawning.Process(target=main, args=(command,))
        process.start()
        while kill_after is not None and process.is_alive() and written(output) < kill_after:
            time.sleep(0.001)
        if kill_after is not None:
            process.kill()
        process.join(120)
        exits.append(process.exitcode)
    assert exits == [-9, -9, -9, 0]
    assert exact(output) == exact(whole)


def written(output: Path) -> int:
    """Steps in the metrics so far."""
    path = output / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0
