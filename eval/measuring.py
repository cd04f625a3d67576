"""Measurements that are made once and written down: whatever is in the file already is not made again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.results import MeasurementFile, Record, appending
from lm.train.distributed import World
from lm.train.progress import Progress

Key = tuple[str, str]
"""Of a measurement: its kind, and of what it is."""


@dataclass(frozen=True)
class Measurement:
    """Something to be measured: its kind and name, the tokens it reads (for the time left), and how it is done."""

    kind: str
    of: str
    tokens: int
    work: Callable[[], Mapping[str, Any]]

    @property
    def key(self) -> Key:
        return self.kind, self.of


def measure(
    title: str, wanted: Sequence[Measurement], path: Path, world: World, progress: Progress, ranks: int
) -> None:
    """Makes the measurements that the file at `path` does not hold. Collective.

    ranks: how many of the ranks take part, by turns; the others wait. What is under way when killed is made anew.
    """
    done = world.on_rank_zero(lambda: {_key(record) for record in MeasurementFile.read(path)})
    left = [one for one in wanted if one.key not in done]
    if not left:
        return
    mine = left[world.rank :: ranks] if world.rank < ranks else []
    total = sum(one.tokens for one in wanted)
    with progress.phase(title, total=total) as phase, appending(MeasurementFile, path, world) as write:
        phase.advance(total - sum(one.tokens for one in left))
        for number in range(-(-len(left) // ranks)):
            here = mine[number] if number < len(mine) else None
            phase.update(note=here.of if here else None)
            found = {"kind": here.kind, "of": here.of} | dict(here.work()) if here else None
            for record in filter(None, world.gather(found)):
                write(record)
            phase.advance(sum(one.tokens for one in left[number * ranks : (number + 1) * ranks]))
        phase.update(note="")


def in_order(records: Iterable[Record], wanted: Sequence[Key]) -> list[Record]:
    """The records of the measurements with these keys, in their order."""
    found = {_key(record): record for record in records}
    return [found[key] for key in wanted if key in found]


def _key(record: Record) -> Key:
    return record["kind"], record["of"]
