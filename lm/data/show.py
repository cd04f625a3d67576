"""What a run reads, for people: rows as text with the places they come from, and what share each source has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lm.data.batches import Batches
from lm.data.manifest import Manifest
from lm.data.options import DataOptions
from lm.data.recall_options import GeneratedOptions
from lm.data.rows import IGNORED
from lm.data.tokenizers import Tokenizer

_SAMPLED_ROWS = 500


@dataclass(frozen=True, eq=False)
class Read:
    """The first `rows` rows of one of a run's orders."""

    batches: Batches
    rows: int

    @property
    def counts(self) -> list[int]:
        """Of these, how many each source gives."""
        return self.batches.order.counts(self.rows)


def tokens_read(read: Sequence[Read]) -> list[int]:
    """How many tokens of each source are read."""
    parts = [[rows * part.batches.sequence_length for rows in part.counts] for part in read]
    return [sum(tokens) for tokens in zip(*parts, strict=True)]


def epochs_read(read: Sequence[Read]) -> list[float]:
    """How often each source is read."""
    parts = [[rows / size for rows, size in zip(part.counts, part.batches.order.rows, strict=True)] for part in read]
    return [sum(epochs) for epochs in zip(*parts, strict=True)]


def source_name(options: DataOptions, index: int) -> str:
    """What a source is called: its path, or its kind where it is made up."""
    source = options.sources[index]
    if isinstance(source, GeneratedOptions):
        name = type(source).__name__.removesuffix("Options").lower()
    else:
        name = source.path
    alike = sum(1 for other in options.sources[:index] if getattr(other, "path", None) == name)
    return f"{name} ({alike + 1})" if alike else name


def shown_rows(
    batches: Batches, tokenizer: Tokenizer, options: DataOptions, rows: Iterable[int], characters: int
) -> Iterator[str]:
    """Lines that show rows by their global numbers; of each document the first and last `characters`."""
    for row in rows:
        batch = batches.rows([row])
        place = batches.order.locate(row)
        learned = int((batch.targets != IGNORED).sum())
        yield (
            f"row {row}: {source_name(options, place.source)}, epoch {place.epoch}, row {place.row} of it; "
            f"{learned:,} of {batch.tokens.shape[1]:,} tokens predict"
        )
        for span in batches.documents(row):
            file, at = batches.origin(span)
            place_read = f"{file}{f', {_unit(file)} {at}' if at else ''}; " if file else ""  # older samples have none
            yield (
                f"  document {span.document}: {place_read}"
                f"tokens {span.begin} to {span.end} of the row, from token {span.offset} of the document"
            )
            tokens = batch.tokens[0, span.begin : span.end].tolist()
            yield from (f"    {line}" for line in _excerpt(tokenizer.decode(tokens), characters).splitlines())


def _unit(file: str) -> str:
    return "byte" if ".jsonl" in file else "record" if ".json" in file else "row"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"


def _excerpt(text: str, characters: int) -> str:
    if len(text) <= 2 * characters:
        return text
    return f"{text[:characters]} [... {len(text) - 2 * characters:,} characters ...] {text[len(text) - characters :]}"


def summary(options: DataOptions, manifests: Sequence[Manifest], read: Sequence[Read]) -> Iterator[str]:
    """What each source is, and what share of the tokens that are read it gives."""
    tokens, epochs = tokens_read(read), epochs_read(read)
    for index in range(len(options.sources)):
        share = tokens[index] / max(1, sum(tokens))
        yield f"{source_name(options, index)}: {share:.1%} of what is read, {epochs[index]:.2f} epochs"
        if index < len(manifests):
            made = manifests[index]
            yield (
                f"  {made.documents:,} {_plural('document', made.documents)}, {made.tokens:,} tokens, "
                f"{made.bytes_per_token:.2f} bytes per token, {made.unknown_rate:.2%} unknown; "
                f"{made.held_out:,} {_plural('document', made.held_out)} held out"
            )
            left_out = {**made.skipped, **({"duplicates": made.duplicates} if made.duplicates else {})}
            if left_out:
                yield "  left out: " + ", ".join(f"{count:,} {kind}" for kind, count in left_out.items())
            yield from (f"    {example}" for example in made.examples[:5])


def fill_rate(read: Sequence[Read]) -> float:
    """Share of the tokens of some of the rows, spread over all, that belong to documents."""
    total = sum(part.rows for part in read)
    filled = tokens = 0
    for part in read:
        wanted = -(-part.rows * _SAMPLED_ROWS // total)
        rows = np.unique(np.linspace(0, part.rows - 1, min(part.rows, wanted)).astype(np.int64)).tolist()
        filled += sum(span.end - span.begin for row in rows for span in part.batches.documents(row))
        tokens += len(rows) * part.batches.sequence_length
    return filled / tokens
