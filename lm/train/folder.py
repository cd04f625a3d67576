"""The output folder of a run: who may use it, what it was begun with, and whether it is complete.

run.yaml          the resolved run file, every default written out
checkpoints/      see `lm.train.checkpoint`
metrics.jsonl     see `lm.train.log`
guard.jsonl       decisions about spikes, see `lm.train.journal`
evaluation.json   the last held-out evaluation, and other files that `lm.train.report` reads
model/            the final weights and the tokenizer
complete.json     written last: the run is done
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, Self

import yaml
from pydantic import ValidationError

from lm.data.options import DataOptions
from lm.errors import UserError
from lm.train.claim import claimed
from lm.train.deepspeed_options import DeepSpeedOptions
from lm.train.distributed import World
from lm.train.file_names import COMPLETE_FILE, RUN_FILE
from lm.train.guard_options import GuardOptions
from lm.train.manifest import checkpoints, step_of
from lm.train.observe.options import ObserveOptions
from lm.train.optimizer_options import OptimizerOptions
from lm.train.options import LogOptions, TrainOptions
from lm.train.tensor_file import replace_text
from lm.train.timeline import Timeline
from lm.train.trainee import Trainee
from lm.yaml_tree import dump_tree

SAME = ("model", "base", "extend", "graft", "lora", "data", "train.seed", "train.global_batch_tokens", "optimizer.kind")
"""Keys, or whole sections, that a run keeps for life: with others it would be another run."""
FREE = ("data.cache_dir", "data.sources.*.path", "data.tokenizer.path", "base.path", "lora.learning_rates*")
"""Keys of these sections that may change. What lies at the paths is compared by its content, which checkpoints name."""
CONTEXT = "model.max_position_embeddings"
"""May change where it was, and is, the longest row: no angle depends on it, and of rows what was read is compared."""
OF_ROWS = ("steps", "global_batch_tokens", "micro_batch_size", "stages", "batch_warmup")
"""Keys of train that decide which rows each step reads."""
EFFECTIVE = ("train.output_dir", "log.*", "measure*", *FREE)
"""Keys whose change does something for a complete run, or is not for the run to say."""
COMPARED_NOWHERE = ("deepspeed", "observe", "guard", "log")


class Run(Protocol):
    """What training reads of a run file (`lm.run_file.RunFile`, a floor above)."""

    @property
    def trainee(self) -> Trainee: ...
    @property
    def data(self) -> DataOptions: ...
    @property
    def train(self) -> TrainOptions: ...
    @property
    def optimizer(self) -> OptimizerOptions: ...
    @property
    def deepspeed(self) -> DeepSpeedOptions: ...
    @property
    def observe(self) -> ObserveOptions: ...
    @property
    def guard(self) -> GuardOptions: ...
    @property
    def log(self) -> LogOptions: ...
    @property
    def timeline(self) -> Timeline: ...
    @property
    def longest_row(self) -> int: ...
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...
    def model_copy(self, *, update: Mapping[str, Any]) -> Self: ...
    @classmethod
    def model_validate(cls, obj: Any) -> Self: ...


class RunFolder:
    """Paths and promises of one output folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / RUN_FILE
        self.checkpoints = root / "checkpoints"
        self.model = root / "model"
        self._complete = root / COMPLETE_FILE

    def is_complete(self, run: Run) -> bool:
        """Whether the run is done: nothing is left to do for these settings.

        Raises UserError where the folder holds another run, or one that went further than `train.steps`.
        """
        self.require_same(run)
        done = self.completed_steps
        if done > run.train.steps:
            raise UserError(
                f"train.steps: {self.root} holds a finished run of {done} steps, more than {run.train.steps}. "
                "Choose another train.output_dir for a shorter run."
            )
        return done == run.train.steps

    @property
    def completed_steps(self) -> int:
        """The steps of the finished run in this folder; 0 where there is none. Raises UserError for a broken file."""
        try:
            return int(json.loads(self._complete.read_text())["steps"])
        except (FileNotFoundError, NotADirectoryError):
            return 0
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{self._complete} cannot be read: {error}. Remove it: the run is then checked, and marked as complete "
                "again if it is, from its newest checkpoint."
            ) from None

    def complete(self, steps: int) -> None:
        """Marks the run as done."""
        replace_text(self._complete, json.dumps({"steps": steps}) + "\n")

    def reopen(self) -> None:
        """Marks the run as not done (any more)."""
        self._complete.unlink(missing_ok=True)

    def require_same(self, run: Run) -> None:
        """Raises UserError, naming the differences, unless `run` can go on where this folder's run stands.

        Steps, schedule, ZeRO stage, precision and the like may change between starts, and the rows of steps to come;
        see SAME for what may not.
        """
        kept = checkpoints(self.checkpoints)
        if not kept or not self.config.exists():
            return
        begun_with = self._begun_with()
        earlier = _completed(begun_with, run)
        before = chosen_leaves(begun_with if earlier is None else _plain(earlier), SAME, FREE)
        now = chosen_leaves(_plain(run), SAME, FREE)
        if earlier is not None and (before.get(CONTEXT), now.get(CONTEXT)) == (earlier.longest_row, run.longest_row):
            del before[CONTEXT], now[CONTEXT]
        changed = {key: (before.get(key), now.get(key)) for key in {**before, **now} if before.get(key) != now.get(key)}
        if not changed:
            done = step_of(kept[0])
            if done > run.train.steps:
                raise UserError(
                    f"train.steps: {self.root} holds a run that has made {done} steps, more than {run.train.steps}. "
                    "Raise it to go on, or choose another train.output_dir for a shorter run."
                )
            read, would_read = _read_before(begun_with, run, done), run.timeline.read_before(done)
            if read != would_read:
                changed[f"what the first {done} steps read, by train.stages and train.batch_warmup,"] = read, would_read
        if changed:
            hint = " (train.stages can read more shards from a later step on)" if "data.shards" in changed else ""
            lines = [f"  {key} was {old} and is now {new}" for key, (old, new) in changed.items()]
            raise UserError(
                f"{self.root} holds checkpoints of a run with other settings:\n" + "\n".join(lines) + "\n"
                f"Set them back to go on with it{hint}, or choose another train.output_dir."
            )

    def without_effect(self, run: Run) -> list[str]:
        """In words, what `run` says otherwise than the complete run in this folder, which is not trained any more."""
        if not self.config.exists():
            return []
        now = dict(leaves(_plain(run)))
        found = []
        for key, old in leaves(self._begun_with()):
            section = any(other.startswith(f"{key}.") for other in now)
            new = now.get(key, "set" if section else old)  # keys of another kind than is chosen now say nothing
            if new != old and not any(fnmatchcase(key, pattern) for pattern in EFFECTIVE):
                found.append(f"{key} was {old} and is now {new}")
        return found

    def _begun_with(self) -> dict[str, Any]:
        try:
            values = yaml.safe_load(self.config.read_text())
            if isinstance(values, dict):
                return values
            reason = "it is not a mapping"
        except (OSError, ValueError, yaml.YAMLError) as error:
            reason = str(error)
        raise UserError(
            f"{self.config} cannot be read as the run file that the run began with: {reason}. Bring it back from a "
            "copy, or remove it to go on with the settings that you gave now."
        )

    def claimed(self, world: World) -> AbstractContextManager[None]:
        """Holds the folder for this run. Collective; raises UserError if another run has it or it cannot be written."""
        return claimed(self.root, world, "train.output_dir", "training")

    def save_config(self, run: Run) -> None:
        """Writes the resolved run file, unless it is there already."""
        text = dump_tree(run.model_dump(mode="json"))
        if not self.config.exists() or self.config.read_text() != text:
            replace_text(self.config, text)


def _plain(run: Run) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(dump_tree(run.model_dump(mode="json")))
    return values


def _completed(before: dict[str, Any], run: Run) -> Run | None:
    """An earlier run file with the defaults of keys that came later; None where this version would refuse it."""
    try:
        return type(run).model_validate({key: value for key, value in before.items() if key not in COMPARED_NOWHERE})
    except ValidationError:
        return None


def _read_before(begun_with: dict[str, Any], run: Run, step: int) -> list[str] | str:
    """What the steps before `step` of an earlier run file of this run read, in the timeline's words.

    Only the keys that decide it are looked at, so that it is known of files, too, that are refused for other keys.
    """
    try:
        train = {key: value for key, value in begun_with["train"].items() if key in OF_ROWS}
        options = TrainOptions.model_validate(train | {"output_dir": run.train.output_dir})
        return Timeline(options, run.optimizer, run.data.sequence_length).read_before(step)
    except (ValidationError, ValueError, KeyError, TypeError) as error:
        return f"not known ({error})"


def chosen_leaves(values: Mapping[str, Any], chosen: Sequence[str], free: Sequence[str]) -> dict[str, Any]:
    """By dotted key the values of the chosen keys and sections, without those that fit a pattern of `free`."""
    return {
        key: value
        for key, value in leaves(values)
        if not any(fnmatchcase(key, pattern) for pattern in free)
        and any(key == one or key.startswith(one + ".") for one in chosen)
    }


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is no mapping and no list, with its dotted key behind `path`."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield path, value
        return
    for key, item in items:
        yield from leaves(item, f"{path}.{key}" if path else str(key))
