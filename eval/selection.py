"""Which questions an evaluation asks: named suites or tasks by name, at every length."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from eval import tasks
from eval.options import SuiteOptions
from eval.tasks import TASKS, CannotBuildError, Haystack, Sample, Task, TokenCounter, find_tasks
from eval.tasks.questions import named_questions
from eval.tasks.words import lists_digest
from lm.data.cache import cached_folder
from lm.data.fingerprint import content_digest, digest
from lm.errors import UserError

SAMPLES = "samples.json"


@dataclass(frozen=True)
class Questions:
    """The samples of one task at one length."""

    task: Task
    length: int
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Skipped:
    """A task that has no honest samples at a length, and why."""

    task: str
    length: int
    reason: str
    needs: int | None = None
    """Tokens that its smallest sample has, where that is the reason."""


def said_of(skipped: Sequence[Skipped]) -> Iterator[str]:
    """Lines about what is left out: of lengths that are too short one each, of other reasons each once."""
    for length in sorted({one.length for one in skipped}):
        short = [f"{one.task} ({one.needs:,})" for one in skipped if one.length == length and one.needs is not None]
        if short:
            yield f"left out at {length:,} tokens, as they need more with this tokenizer: {', '.join(short)}"
    for reason in dict.fromkeys(one.reason for one in skipped if one.needs is None):
        yield f"left out: {reason}"


def chosen_tasks(options: SuiteOptions) -> list[Task]:
    """The tasks that the options name.

    Raises UserError, with the nearest name, for one that is neither a task nor a suite, and for files of questions
    that cannot be read.
    """
    try:
        chosen = find_tasks(options.tasks)
    except UserError as error:
        raise UserError(f"{options.written('tasks')}: {error}") from None
    used = {text for task in chosen for text in task.texts}
    if options.squad is not None and "squad" in used:
        named_questions(options.squad, "squad", options.written)
    if options.hotpotqa is not None and "hotpotqa" in used:
        named_questions(options.hotpotqa, "hotpotqa", options.written)
    return chosen


class QuestionWriter:
    """Writes samples, or finds those that were written before: the same task, length, seed, texts and tokenizer."""

    def __init__(self, tokenizer: TokenCounter, fingerprint: str, options: SuiteOptions, haystack: Haystack) -> None:
        """fingerprint: names the tokenizer: equal ones cut all texts alike."""
        self._tokenizer = tokenizer
        self._options = options
        self._haystack = haystack
        self._made_of = {
            "tokenizer": fingerprint,
            "samples": options.samples,
            "seed": options.seed,
            "texts": [haystack.digest, *(file_hash(options, name) for name in ("squad", "hotpotqa"))],
            "words": lists_digest(),
            "program": content_digest(path.read_bytes() for path in sorted(Path(tasks.__file__).parent.glob("*.py"))),
        }

    def write(self, task: Task, length: int) -> Questions | Skipped:
        """The samples of a task at a length, or why there are none. Those of the suite's own tasks are kept.

        Raises UserError where the cache cannot be written.
        """
        own = TASKS.get(task.name) is task  # of which the name and the program say all
        try:
            samples = self._kept(task, length) if own else self._written(task, length)
        except CannotBuildError as error:
            return Skipped(task.name, length, str(error), error.needs)
        return Questions(task, length, samples)

    def _written(self, task: Task, length: int) -> list[Sample]:
        return task.samples(self._tokenizer, length, self._options.samples, self._options.seed, self._haystack)

    def _kept(self, task: Task, length: int) -> list[Sample]:
        def build(folder: Path) -> None:
            samples = [asdict(sample) for sample in self._written(task, length)]
            (folder / SAMPLES).write_text(json.dumps(samples), encoding="utf-8")

        name = f"{task.name}-{length}-{digest(self._made_of | {'task': task.name, 'length': length})}"
        folder = cached_folder(self._options.cache_dir, name, build, self._options.written("cache_dir"))
        kept = json.loads((folder / SAMPLES).read_text(encoding="utf-8"))
        return [Sample(**values | {"answers": tuple(values["answers"])}) for values in kept]


def file_hash(options: SuiteOptions, name: Literal["squad", "hotpotqa"]) -> str | None:
    """Names the content of the file that an option of this name names. Raises UserError where it cannot be read."""
    path: Path | None = getattr(options, name)
    if path is None:
        return None
    try:
        return content_digest([path.read_bytes()])
    except OSError as error:
        raise UserError(f"{options.written(name)}: '{path}' cannot be read: {error.strerror}") from None
