"""Whether `train.output_dir` is a folder that a run may fill: its own, or one that nobody keeps anything in."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from lm.data.options import DataOptions
from lm.data.recall_options import GeneratedOptions
from lm.data.sources import would_find
from lm.errors import UserError
from lm.train.file_names import COMPLETE_FILE, GRAFTED, LOCK_FILE, METRICS_FILE, REGRESSION, RUN_FILE

OF_A_RUN = (RUN_FILE, LOCK_FILE, METRICS_FILE, COMPLETE_FILE, f"{REGRESSION}/{LOCK_FILE}", f"{GRAFTED}/config.json")
"""One of them is there as soon as a run has begun, however early it ended."""
LOGS = (".*", "*.log", "*.out", "*.err", "*.[oe][0-9]*", "slurm-*", "lost+found")
SCRIPTS = ("*.yaml", "*.yml", "*.sh", "*.sbatch", "*.slurm", "*.pbs")
"""What may lie there before: what launchers, schedulers and new disks leave; run files, and scripts that start them."""
READABLE = (
    METRICS_FILE,
    "model/README.md",
    "model/config.json",
    "model/modeling_braid.py",
    "wandb/run/files/requirements.txt",
)
"""A file of each kind that a run leaves and a source may read."""


def require_own_folder(root: Path, data: DataOptions) -> None:
    """Raises UserError, before anything is written, where a run would mix its files with others', or read its own.

    root: the run's `train.output_dir`, which need not be there.
    """
    for index, source in enumerate(data.sources):
        if isinstance(source, GeneratedOptions):
            continue
        if any(would_find(source, root / name) for name in READABLE):
            raise UserError(
                f"train.output_dir: {root} lies where data.sources.{index}.path '{source.path}' is searched, so the "
                "run's own files would be read as text: name a folder outside of it"
            )
    if not root.is_dir() or any((root / name).exists() for name in OF_A_RUN):
        return
    try:
        other = _other(root, data.cache_dir.resolve())
    except OSError as error:
        raise UserError(f"train.output_dir: {error.filename} cannot be read: {error.strerror}") from None
    if other is not None:
        raise UserError(
            f"train.output_dir: {root} is not empty, and not an earlier run (it holds {other.relative_to(root)}): name "
            "a new folder"
        )


def _other(folder: Path, cache: Path) -> Path | None:
    """The first of what is there besides a job's files, the data's cache and empty folders, if there is any."""
    for entry in sorted(folder.iterdir()):
        if any(fnmatchcase(entry.name, name) for name in (*LOGS, *SCRIPTS)) or entry.resolve() == cache:
            continue
        if not entry.is_dir() or (entry.is_symlink() and any(entry.iterdir())):
            return entry
        if (inner := _other(entry, cache)) is not None:
            return inner
    return None
