"""Asks a model what it has not been asked yet, on all ranks, and writes the answers down as they come."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.model import Model
from eval.results import Record, SampleFile, appending
from eval.selection import Questions
from eval.statistics import estimate, percent
from eval.tasks import Sample, Task
from lm.data.fingerprint import content_digest
from lm.errors import UserError
from lm.train.distributed import World
from lm.train.progress import Progress

APART_SECONDS = 15.0
"""For so long ranks answer before they meet: one that meets others after each batch would wait for the slowest."""

Key = tuple[str, int, int]


@dataclass(frozen=True)
class Item:
    """One sample to be asked; index counts within its task and length."""

    task: Task
    index: int
    sample: Sample

    @property
    def key(self) -> Key:
        return self.task.name, self.sample.length, self.index

    @property
    def prompt_hash(self) -> str:
        return content_digest([self.sample.prompt.encode()])

    def record(self, prediction: str) -> dict[str, Any]:
        """The line of samples.jsonl."""
        sample = self.sample
        return {
            "task": sample.task,
            "length": sample.length,
            "index": self.index,
            "id": sample.id,
            "prompt": self.prompt_hash,
            "answers": sample.answers,
            "prediction": prediction,
            "score": float(self.task.score(prediction, sample)),
            "meta": dict(sample.meta),
        }


def ask(
    model: Model, questions: Sequence[Questions], path: Path, batch_tokens: int, world: World, progress: Progress
) -> None:
    """Answers every sample that the file at `path` holds no answer to. Collective.

    Ranks take the samples in turn and answer them by batches; rank 0 writes. A kill loses one batch of a single rank,
    or of several what they have answered since they met.
    """
    items = [Item(one.task, index, sample) for one in questions for index, sample in enumerate(one.samples)]
    done = world.on_rank_zero(lambda: answered(path, items))
    mine = [item for item in items[world.rank :: world.size] if item.key not in done]
    batches = deque(batched(mine, batch_tokens))
    board = _Board(questions, done)
    with (
        progress.phase("answering", total=sum(item.sample.length for item in items)) as phase,
        appending(SampleFile, path, world) as write,
    ):
        phase.advance(sum(item.sample.length for item in items if item.key in done))
        while any(world.gather(bool(batches))):
            answers = _answer_some(model, batches, APART_SECONDS if world.size > 1 else 0.0)
            records = [record for part in world.gather(answers) for record in part]
            for record in records:
                write(record)
                if line := board.add(record):
                    progress.say(line)
            phase.advance(sum(record["length"] for record in records))
            phase.update(note=f"{records[-1]['task']} at {records[-1]['length']:,} tokens")
        phase.update(note="")


def _answer_some(model: Model, batches: deque[list[Item]], seconds: float) -> list[dict[str, Any]]:
    """Takes batches away and answers them: for about so long, at least one if there is any."""
    begin = time.monotonic()
    records: list[dict[str, Any]] = []
    while batches and (not records or time.monotonic() - begin < seconds):
        records += _answer(model, batches.popleft())
    return records


def _answer(model: Model, batch: Sequence[Item]) -> list[dict[str, Any]]:
    prompts = [model.encode_prompt(item.sample.prompt) for item in batch]
    written = model.generate(prompts, batch[0].sample.max_new_tokens)
    return [item.record(model.decode(ids)) for item, ids in zip(batch, written, strict=True)]


class _Board:
    """The scores of each task and length, and which of these are complete."""

    def __init__(self, questions: Sequence[Questions], done: Mapping[Key, float]) -> None:
        self._wanted = {(one.task.name, one.length): len(one.samples) for one in questions}
        self._scores: dict[tuple[str, int], list[float]] = {place: [] for place in self._wanted}
        for (task, length, _), score in done.items():
            self._scores[task, length].append(score)

    def add(self, record: Record) -> str | None:
        """Counts a score; the line to be said where it was its task's last one at this length."""
        place = record["task"], record["length"]
        self._scores[place].append(record["score"])
        if len(self._scores[place]) < self._wanted[place]:
            return None
        return f"{place[0]} at {place[1]:,} tokens  {percent(estimate(self._scores[place]))}"


def answered(path: Path, items: Sequence[Item]) -> dict[Key, float]:
    """The scores of the items that a file holds answers to. Raises UserError where it asked something else."""
    asked = {item.key: item for item in items}
    done: dict[Key, float] = {}
    for record in SampleFile.read(path):
        item = asked.get((record["task"], record["length"], record["index"]))
        if item is None or record["prompt"] != item.prompt_hash or record.get("answers") != list(item.sample.answers):
            raise UserError(
                f"{path}: sample {record['index']} of {record['task']} at {record['length']} tokens was another one, "
                "of other data or another version of this program. Choose another folder."
            )
        done[item.key] = record["score"]
    return done


def batched(items: Sequence[Item], tokens: int) -> Iterator[list[Item]]:
    """Neighbours of equal answer length, in batches of at most `tokens` tokens, or of one item."""
    batch: list[Item] = []
    for item in items:
        longest = max(other.sample.length for other in (*batch, item))
        alike = all(other.sample.max_new_tokens == item.sample.max_new_tokens for other in batch[:1])
        if batch and not (alike and (len(batch) + 1) * longest <= tokens):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch
