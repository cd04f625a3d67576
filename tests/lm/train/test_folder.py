from collections.abc import Callable
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.run_file import RunFile, load_run_file
from lm.train import distributed, manifest
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


def test_the_saved_run_file_loads_back_equal(make_run: MakeRun) -> None:
    run = make_run("optimizer.weight_decay=0.2")
    assert load_run_file(begun(run).config) == run
