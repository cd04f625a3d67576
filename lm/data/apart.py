"""What one source of a run holds out is trained on through no other that holds the same document.

Nearly all documents are divided by chance, which falls alike in every source. Exceptions (`lm.data.split`) are few and
those of small sources, and a large one that has been tokenized for days must not be tokenized again for them. So every
shard is made by the rule of its own source and keeps the hashes of its documents; only where one of them is another
source's exception is that shard made once more, under a name of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lm.data.cache import cached_folder
from lm.data.fingerprint import digest
from lm.data.mapped import mapped
from lm.data.shard import PLACES, Tokenizing, write_places
from lm.data.sharding import shard_name
from lm.data.sources import Source
from lm.data.split import Split
from lm.data.workers import reporting


@dataclass(frozen=True)
class Placing:
    """Reads the hashes of the documents of shards that were made before shards kept them."""

    folder: Path
    source: Source
    split: Split

    def name(self, number: int) -> str:
        """What the folder of a shard's hashes is called."""
        return f"split-{shard_name(number)}"

    def __call__(self, number: int, report: Callable[..., None]) -> None:
        def build(folder: Path) -> None:
            write_places(folder, list(map(self.split.place, reporting(self.source.shard(number), report))))

        cached_folder(self.folder, self.name(number), build)


def unplaced(work: Tokenizing, run: Split, numbers: Sequence[int]) -> tuple[Placing, list[int]]:
    """The shards, of these which are there, whose hashes are wanted and have to be read from the text; who reads them.

    run: the rule of all sources together.
    """
    wanted = numbers if run.differing(work.split) else ()
    missing = [number for number in wanted if not (work.folder / work.name(number) / PLACES).is_file()]
    return Placing(work.folder, work.source, work.split), missing


def agreeing(work: Tokenizing, run: Split, numbers: Sequence[int]) -> Tokenizing:
    """The work by the rule of the run, where these shards have been made by the rule of their source.

    Shards that this changes have names that say how.
    """
    differing = np.array(run.differing(work.split))
    if not len(differing):
        return work
    placing, names = Placing(work.folder, work.source, work.split), {}
    for number in numbers:
        kept = work.folder / work.name(number) / PLACES
        places = mapped(kept if kept.is_file() else work.folder / placing.name(number) / PLACES, "<f8")
        found = differing[np.searchsorted(places, differing) < np.searchsorted(places, differing, side="right")]
        if len(found):
            changed = [(place, run.side(place)) for place in found.tolist()]
            names[number] = f"{shard_name(number)}-{digest(changed)}"
    return replace(work, split=run, names=names)
