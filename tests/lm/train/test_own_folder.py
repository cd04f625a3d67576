"""A run fills a folder of its own: what others keep is left as it is, and never read as text."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.run_file import RunFile
from lm.train.loop import train
from lm.train.own_folder import require_own_folder

MakeRun = Callable[..., RunFile]


def require(run: RunFile) -> None:
    require_own_folder(run.train.output_dir, run.data)


def contents(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("name", ["poem.txt", "deep/er/poem.txt", "results.csv", "checkpoints/step-5/optimizer.pt"])
def test_a_folder_with_other_things_is_refused_and_left_as_it_is(make_run: MakeRun, tmp_path: Path, name: str) -> None:
    (tmp_path / "out" / name).parent.mkdir(parents=True)
    (tmp_path / "out" / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=rf"^train.output_dir: .*not empty, and not an earlier run \(it holds {name}\)"):
        train(make_run())
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["", "corpus/..", "corpus/run"])
def test_a_folder_that_is_or_holds_the_text_is_refused(make_run: MakeRun, tmp_path: Path, name: str) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "poem.txt").write_text("mine")
    with pytest.raises(UserError, match=r"^train.output_dir: "):
        require(make_run(f"train.output_dir={tmp_path / name}", f"data.sources.0.path={tmp_path / 'corpus'}"))


@pytest.mark.parametrize(
    ("source", "output", "found"),
    [
        ("corpus", "corpus", True),
        ("corpus", "corpus/runs/mine", True),
        ("corpus", "link/mine", True),
        ("corpus", "corpus/.runs/mine", False),
        ("corpus", "corpus-of-runs", False),
        ("corpus/**/*.txt", "corpus/mine", True),
        ("corpus/*.txt", "corpus/mine", False),
        ("corpus/a.txt", "corpus/mine", False),
    ],
)
def test_a_run_never_reads_its_own_files(
    make_run: MakeRun, tmp_path: Path, source: str, output: str, found: bool
) -> None:
    """Nor where it did so before: an earlier run there is no better."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "link").symlink_to("corpus")
    run = make_run(f"train.output_dir={tmp_path / output}", f"data.sources.0.path={tmp_path / source}")
    run.train.output_dir.mkdir(parents=True, exist_ok=True)
    (run.train.output_dir / "lock").touch()
    if not found:
        require(run)
        return
    with pytest.raises(UserError, match=r"data.sources.0.path '.*' is searched, so the run's own files would be read"):
        require(run)


def test_what_launchers_schedulers_and_scripts_leave_is_no_hindrance(make_run: MakeRun, tmp_path: Path) -> None:
    output = tmp_path / "out"
    for name in (
        "slurm-123.out",
        "braid-123.log",
        "braid.o123",
        "job.sbatch",
        "mine.yaml",
        ".nfs0001",
        "logs/none_a1/attempt_0/0/stderr.log",
        "cache/tokens.bin",
        "lost+found/chunk",
    ):
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).touch()
    (tmp_path / "disk").mkdir()
    (output / "checkpoints").symlink_to("../disk")
    require(make_run(f"data.cache_dir={output / 'cache'}"))
    with pytest.raises(UserError, match=r"it holds cache/tokens\.bin"):
        require(make_run())
    (output / "cache" / "tokens.bin").unlink()
    (tmp_path / "disk" / "mine").touch()
    with pytest.raises(UserError, match="it holds checkpoints"):
        require(make_run())


@pytest.mark.parametrize("name", ["lock", "run.yaml", "regression/lock", "grafted/config.json"])
def test_a_run_that_ended_before_its_first_checkpoint_goes_on(make_run: MakeRun, tmp_path: Path, name: str) -> None:
    for file in (name, "guard.jsonl"):
        (tmp_path / "out" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / file).touch()
    require(make_run())
