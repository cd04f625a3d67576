import errno
import fcntl
from collections.abc import Callable
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.run_file import RunFile, load_run_file
from lm.train import distributed, manifest, tensor_file
from lm.train.folder import RunFolder

MakeRun = Callable[..., RunFile]


def begun(run: RunFile) -> RunFolder:
    """The folder of a run that has a checkpoint."""
    folder = RunFolder(run.train.output_dir)
    with folder.claimed(distributed.start()):
        manifest.commit(manifest.begin(folder.checkpoints, 5), {})
        folder.save_config(run)
    return folder


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("model.hidden_size=32", "model.hidden_size was 16 and is now 32"),
        ("model.layers=rat rat ls s2", "model.layers was rat local ls s2"),
        ("data.sequence_length=16", "data.sequence_length was 32 and is now 16"),
        ("train.seed=1", "train.seed was 0 and is now 1"),
        ("train.global_batch_tokens=512", "train.global_batch_tokens was 256 and is now 512"),
    ],
)
def test_another_run_is_refused_with_the_difference(make_run: MakeRun, change: str, named: str) -> None:
    folder = begun(make_run())
    with pytest.raises(UserError) as error:
        folder.require_same(make_run(change))
    assert named in str(error.value)


def test_what_may_change_between_starts_may_change(make_run: MakeRun, tmp_path: Path) -> None:
    folder = begun(make_run())
    changes = ["train.steps=40", "optimizer.lr=0.5", "deepspeed.zero_stage=2", f"data.cache_dir={tmp_path}"]
    folder.require_same(make_run(*changes, "train.micro_batch_size=1", "train.checkpoint_every=3"))


def test_the_text_may_lie_elsewhere(make_run: MakeRun, tmp_path: Path) -> None:
    """Its content is compared by fingerprint, when it is read."""
    begun(make_run()).require_same(make_run(f"data.sources.0.path={tmp_path}"))


def test_a_key_that_came_after_the_run_began_has_its_default(make_run: MakeRun) -> None:
    folder = begun(make_run())
    text = folder.config.read_text()
    folder.config.write_text(text.replace("  rms_norm_eps: 1.0e-06\n", ""))
    assert folder.config.read_text() != text
    folder.require_same(make_run())
    with pytest.raises(UserError, match=r"rms_norm_eps was 1e-06 and is now 0\.1"):
        folder.require_same(make_run("model.rms_norm_eps=0.1"))


def test_what_was_read_is_compared_where_the_old_run_file_is_refused_now(make_run: MakeRun) -> None:
    """An earlier version took what this one does not: the rows that were read are those of the run all the same."""
    folder = begun(make_run("train.stages=[{steps: 7}, {}]"))
    text = folder.config.read_text()
    folder.config.write_text(text.replace("keep_best: false", "keep_best: true"))
    assert folder.config.read_text() != text
    folder.require_same(make_run("train.stages=[{steps: 7}, {global_batch_tokens: 512}]"))
    with pytest.raises(UserError, match=r"what the first 5 steps read, .* was \['5 x 8 rows"):
        folder.require_same(make_run("train.stages=[{steps: 7, global_batch_tokens: 512}, {}]"))


@pytest.mark.parametrize("content", ["", "model: [", "\x00"])
def test_a_broken_run_file_is_named_with_the_remedy(make_run: MakeRun, content: str) -> None:
    folder = begun(make_run())
    folder.config.write_text(content)
    with pytest.raises(UserError, match=r"(?s)run.yaml cannot be read .* or remove it"):
        folder.require_same(make_run())


@pytest.mark.parametrize("content", ["", '{"steps"', "{}", "3"])
def test_a_broken_mark_of_completion_is_named_with_the_remedy(make_run: MakeRun, content: str) -> None:
    folder = begun(make_run())
    (folder.root / "complete.json").write_text(content)
    with pytest.raises(UserError, match=r"complete.json cannot be read: .* Remove it"):
        folder.is_complete(make_run())


def test_an_interrupted_write_leaves_the_old_run_file(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = begun(make_run())
    before = folder.config.read_text()

    def full(path: Path, text: str) -> None:
        path.write_text(text[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(tensor_file, "write_text", full)
    folder.save_config(make_run())  # nothing new, so nothing is written
    with pytest.raises(OSError, match="No space"):
        folder.save_config(make_run("train.steps=40"))
    assert folder.config.read_text() == before


def test_a_folder_without_checkpoints_takes_any_run(make_run: MakeRun) -> None:
    folder = RunFolder(make_run().train.output_dir)
    with folder.claimed(distributed.start()):
        folder.save_config(make_run())
    folder.require_same(make_run("model.hidden_size=32"))


def test_a_finished_run_is_complete_until_it_is_given_more_steps(make_run: MakeRun) -> None:
    folder = begun(make_run())
    assert not folder.is_complete(make_run())
    folder.complete(20)
    assert folder.is_complete(make_run())
    assert not folder.is_complete(make_run("train.steps=30"))
    with pytest.raises(UserError, match="finished run of 20 steps"):
        folder.is_complete(make_run("train.steps=10"))


def test_a_run_cannot_become_shorter(make_run: MakeRun) -> None:
    """It is the steps that are named, not the rows that would not be read; but another model comes first."""
    folder = begun(make_run("train.stages=[{steps: 0.6}, {sequence_length: 64}]"))
    shorter = make_run("train.stages=[{steps: 0.6}, {sequence_length: 64}]", "train.steps=4")
    with pytest.raises(UserError, match=r"^train.steps: .* has made 5 steps, more than 4"):
        folder.is_complete(shorter)
    with pytest.raises(UserError, match=r"model\.rms_norm_eps was"):
        folder.is_complete(make_run("train.steps=4", "model.rms_norm_eps=0.1"))


def test_what_a_complete_run_cannot_follow_any_more_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    folder = begun(make_run("optimizer.schedule={kind: wsd, warmup_steps: 2, decay_steps: 3}"))
    changes = ["optimizer.lr=0.5", "deepspeed.zero_stage=2"]
    schedule = "optimizer.schedule={kind: constant, warmup_steps: 2}"
    evaluations = "evaluations={tasks: [passkey], lengths: [16], every: 5}"
    found = folder.without_effect(make_run(*changes, schedule, evaluations, f"data.cache_dir={tmp_path}"))
    assert {line.split(" ")[0] for line in found} == {
        "optimizer.lr",
        "optimizer.schedule.kind",
        "deepspeed.zero_stage",
        "evaluations",
    }
    assert "optimizer.lr was 0.01 and is now 0.5" in found
    assert "evaluations was None and is now set" in found
    same = make_run("optimizer.schedule={kind: wsd, warmup_steps: 2, decay_steps: 3}", "log.every=3")
    assert folder.without_effect(same) == []


def test_a_folder_has_one_run_at_a_time(make_run: MakeRun) -> None:
    world, folder = distributed.start(), RunFolder(make_run().train.output_dir)
    with (
        folder.claimed(world),
        pytest.raises(UserError, match="another process is training"),
        RunFolder(folder.root).claimed(world),
    ):
        pass
    with folder.claimed(world):
        pass


def test_a_folder_that_cannot_be_written_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = RunFolder(tmp_path / "file" / "out")
    with pytest.raises(UserError, match="cannot be written"), folder.claimed(distributed.start()):
        pass


def test_a_disk_without_locks_is_named(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    world, folder, handles = distributed.start(), RunFolder(make_run().train.output_dir), Path("/proc/self/fd")
    before = len(list(handles.iterdir()))
    monkeypatch.setattr(fcntl, "flock", refuse)
    says = r"train\.output_dir: .* does not lock files: No locks available\. .*-o flock"
    with pytest.raises(UserError, match=says), folder.claimed(world):
        pass
    assert len(list(handles.iterdir())) == before


def test_the_saved_run_file_loads_back_equal(make_run: MakeRun) -> None:
    run = make_run("optimizer.weight_decay=0.2")
    assert load_run_file(begun(run).config) == run
