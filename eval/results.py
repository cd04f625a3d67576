"""The folder of an evaluation: what fixes it, every sample as it was scored, and the result.

settings.json        the model, tokenizer, tasks, lengths, seed and texts; written first
samples.jsonl        one line for each scored sample, appended as they are finished
measurements.jsonl   one line for each perplexity and each length whose speed was measured
results.json         scores with their intervals, and all of the above but the single samples; written last
report.html          see `eval.page`
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from eval.statistics import Estimate, estimate
from lm.data.fingerprint import content_digest
from lm.errors import UserError
from lm.train.claim import claimed
from lm.train.distributed import World
from lm.train.json_lines import JsonLines, plain
from lm.train.tensor_file import replace_text

FORMAT = 1
FREE = ("model.name", "model.path", "longbench.data")
"""Settings that may differ when an evaluation goes on: the same weights may have moved, and so may data."""

MODEL = "model.fingerprint"
Record = Mapping[str, Any]


class SampleFile(JsonLines):
    """`samples.jsonl`: task, length, index, id, hash of the prompt, answers, prediction, score, meta."""

    required: ClassVar[Mapping[str, type]] = {"task": str, "length": int, "index": int, "prompt": str, "score": float}
    remedy = "Delete that line: its sample is then scored again."


class MeasurementFile(JsonLines):
    """`measurements.jsonl`: what was measured (`perplexity` or `efficiency`), of what, and figures."""

    required: ClassVar[Mapping[str, type]] = {"kind": str, "of": str}
    remedy = "Delete that line: it is then measured again."


@dataclass(frozen=True)
class Cell:
    """A task at a length: the records of its samples, in their order."""

    task: str
    length: int
    metric: str
    samples: Sequence[Record]

    @cached_property
    def scores(self) -> list[float]:
        return [record["score"] for record in self.samples]

    @cached_property
    def estimate(self) -> Estimate:
        return estimate(self.scores)

    @cached_property
    def prompts(self) -> str:
        """Names the prompts: cells with equal ones asked the same questions in the same order."""
        return content_digest(record["prompt"].encode() for record in self.samples)

    def to_json(self) -> dict[str, Any]:
        return {"task": self.task, "length": self.length, "metric": self.metric, "prompts": self.prompts} | asdict(
            self.estimate
        )


@dataclass(frozen=True)
class Results:
    """A finished evaluation.

    settings: as in settings.json. skipped: task, length and reason of what could not be asked. folder: its name.
    """

    settings: Mapping[str, Any]
    cells: Sequence[Cell] = ()
    measurements: Sequence[Record] = ()
    skipped: Sequence[Record] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""

    @property
    def name(self) -> str:
        """The model's."""
        return str(self.settings["model"]["name"])

    @property
    def tasks(self) -> list[str]:
        asked = {cell.task for cell in self.cells}
        return [task for task in self.settings["tasks"] if task in asked]

    @property
    def lengths(self) -> list[int]:
        return sorted({cell.length for cell in self.cells})

    @cached_property
    def prompts(self) -> str:
        """Names all prompts."""
        return content_digest(cell.prompts.encode() for cell in self.cells)

    def cell(self, task: str, length: int) -> Cell | None:
        return next((cell for cell in self.cells if (cell.task, cell.length) == (task, length)), None)

    def measured(self, kind: str) -> list[Record]:
        return [record for record in self.measurements if record["kind"] == kind]

    def means(self, tasks: Sequence[str]) -> dict[int, float]:
        """By length, the mean of the mean scores of these tasks, which were asked at every length."""
        found = [cell for cell in self.cells if cell.task in tasks]
        return {
            n: sum(cell.estimate.mean for cell in found if cell.length == n) / len(tasks) for n in self.lengths if tasks
        }

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **self.settings,
            "prompts": self.prompts,
            "scores": [cell.to_json() for cell in self.cells],
            "means": {str(length): mean for length, mean in self.means(common_tasks([self])).items()},
            "measurements": list(self.measurements),
            "skipped": list(self.skipped),
            "environment": dict(self.environment),
        }


def common_tasks(results: Sequence[Results]) -> list[str]:
    """The tasks that every result asked at each of its lengths: only means over these compare, by length and model."""
    first, *_ = results
    return [task for task in first.tasks if all(one.cell(task, n) for one in results for n in one.lengths)]


KindT = TypeVar("KindT", bound=JsonLines)


@contextmanager
def appending(kind: type[KindT], path: Path, world: World) -> Iterator[Callable[[Record], None]]:
    """What writes a record to the file at `path`, on rank 0; on the others it does nothing."""
    if world.rank == 0:
        with closing(kind(path)) as file:
            yield file.append
    else:
        yield lambda record: None


class ResultFolder:
    """Paths and promises of one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.settings, self.results = root / "settings.json", root / "results.json"
        self.samples, self.measurements = root / "samples.jsonl", root / "measurements.jsonl"
        self.page = root / "report.html"

    def require_place(self) -> None:
        """Raises UserError where the folder cannot be made, before anything is computed for it."""
        found = next(place for place in (self.root, *self.root.absolute().parents) if place.exists())
        if not found.is_dir() or not os.access(found, os.W_OK):
            what = "cannot be written" if found.is_dir() else "is a file, not a folder"
            raise UserError(f"--output: {found} {what}: choose another folder")

    @contextmanager
    def claimed(self, world: World, settings: Mapping[str, Any]) -> Iterator[None]:
        """Holds the folder for an evaluation with these settings. Collective.

        Raises UserError where another process has it, it holds another evaluation, or it cannot be written.
        """
        with claimed(self.root, world, "--output", "evaluating"):
            world.on_rank_zero(lambda: self._begin(plain(settings)))
            yield

    def save(self, results: Results) -> None:
        """Writes results.json."""
        replace_text(self.results, json.dumps(plain(results.to_json()), indent=1) + "\n")

    def _begin(self, settings: Mapping[str, Any]) -> None:
        begun = any(path.exists() and path.stat().st_size for path in (self.samples, self.measurements))
        if not begun or not self.settings.exists():  # what ended before its first answer fixes nothing
            replace_text(self.settings, json.dumps(settings, indent=1) + "\n")
            return
        there = read_object(self.settings)
        before, now = _fixed(there), _fixed(settings)
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        if changed:
            before, now = before | {MODEL: _model_of(there)}, now | {MODEL: _model_of(settings)}
            lines = [f"  {key} was {before.get(key)} and is now {now.get(key)}" for key in changed]
            raise UserError(
                f"--output: {self.root} holds an evaluation with other settings:\n" + "\n".join(lines) + "\n"
                "Set them back to go on with it, or choose another folder."
            )


def load_results(folder: Path) -> Results:
    """A finished evaluation, from its folder. Raises UserError where it is missing, not finished or damaged."""
    files = ResultFolder(folder)
    if not files.results.exists():
        begun = "is not finished: the same command goes on with it" if files.settings.exists() else "is not there"
        raise UserError(f"{files.results}: the evaluation {begun}. Name folders that `braid eval MODEL` wrote.")
    values = read_object(files.results)
    if values.get("format") != FORMAT:
        raise UserError(f"{files.results}: not as this version writes it. Evaluate again into another folder.")
    return Results(
        settings=read_object(files.settings),
        cells=cells(values["tasks"], SampleFile.read(files.samples)),
        measurements=values["measurements"],
        skipped=values["skipped"],
        environment=values["environment"],
        folder=folder.resolve().name,
    )


def cells(metrics: Mapping[str, str], records: Sequence[Record]) -> tuple[Cell, ...]:
    """The records in cells by length, then task in the order of `metrics`, whatever order they were written in."""
    groups: dict[tuple[int, str], list[Record]] = {}
    for record in sorted(records, key=lambda record: record["index"]):
        groups.setdefault((record["length"], record["task"]), []).append(record)
    order = {task: place for place, task in enumerate(metrics)}
    return tuple(
        Cell(task, length, metrics[task], groups[length, task])
        for length, task in sorted(groups, key=lambda key: (key[0], order[key[1]]))
    )


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError for anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}. Evaluate again into another folder.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object. Evaluate again into another folder.")
    return values


def _model_of(settings: Mapping[str, Any]) -> str:
    fingerprint, name, path = (settings.get("model", {}).get(key) for key in ("fingerprint", "name", "path"))
    return f"{fingerprint} of {name} ({path})"


def _fixed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What must stay, by dotted names; of tasks and lengths all in one line."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if key == "tasks":
            found[key] = ", ".join(f"{task} by {metric}" for task, metric in value.items()) or "none"
        elif isinstance(value, dict):
            found |= {f"{key}.{part}": inner for part, inner in value.items()}
        else:
            found[key] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return {key: value for key, value in found.items() if key not in FREE}
