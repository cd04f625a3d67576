"""What a batch says, for people: its rows as text, each document with its number and the place it was read from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from lm.data.options import DataOptions, SourceOptions
from lm.data.prepare import Prepared
from lm.data.recall_options import GeneratedOptions
from lm.data.rows import IGNORED


def source_name(options: DataOptions, index: int) -> str:
    """What a source is called: its path, or its kind where it is made up."""
    source = options.sources[index]
    if isinstance(source, GeneratedOptions):
        name = type(source).__name__.removesuffix("Options").lower()
    else:
        name = source.path
    alike = sum(1 for other in options.sources[:index] if getattr(other, "path", None) == name)
    return f"{name} ({alike + 1})" if alike else name


def shown_rows(prepared: Prepared, options: DataOptions, rows: Iterable[int], characters: int) -> Iterator[str]:
    """Lines that show rows by their global numbers; of each document the first and last `characters`."""
    for row in rows:
        batch = prepared.train.rows([row])
        place = prepared.train.order.locate(row)
        learned = int((batch.targets != IGNORED).sum())
        yield (
            f"row {row}: {source_name(options, place.source)}, epoch {place.epoch}, row {place.row} of it; "
            f"{learned:,} of {batch.tokens.shape[1]:,} tokens predict"
        )
        for span in prepared.train.documents(row):
            file, at = prepared.train.origin(span)
            yield (
                f"  document {span.document}: {file}{f', {_unit(file)} {at}' if at else ''}; "
                f"tokens {span.begin} to {span.end} of the row, from token {span.offset} of the document"
            )
            tokens = batch.tokens[0, span.begin : span.end].tolist()
            yield from (f"    {line}" for line in _excerpt(prepared.tokenizer.decode(tokens), characters).splitlines())


def _unit(file: str) -> str:
    return "byte" if ".jsonl" in file else "number"


def _excerpt(text: str, characters: int) -> str:
    if len(text) <= 2 * characters:
        return text
    return f"{text[:characters]} [... {len(text) - 2 * characters:,} characters ...] {text[len(text) - characters :]}"


def summary(prepared: Prepared, options: DataOptions, rows: int) -> Iterator[str]:
    """What each source is, and how often the first `rows` rows read it."""
    counts = prepared.train.order.counts(rows)
    for index, (count, size) in enumerate(zip(counts, prepared.train.order.rows, strict=True)):
        yield f"{source_name(options, index)}: {count / max(1, rows):.1%} of the rows, {count / size:.2f} epochs"
        if index < len(prepared.manifests):
            made = prepared.manifests[index]
            yield (
                f"  {made.documents:,} documents, {made.tokens:,} tokens, {made.bytes_per_token:.2f} bytes per token, "
                f"{made.unknown_rate:.2%} unknown; {made.held_out:,} documents held out"
            )
            left_out = {**made.skipped, **({"duplicates": made.duplicates} if made.duplicates else {})}
            if left_out:
                yield "  left out: " + ", ".join(f"{count:,} {kind}" for kind, count in left_out.items())
            yield from (f"    {example}" for example in made.examples[:5])


def fill_rate(prepared: Prepared, options: DataOptions, rows: int) -> float:
    """Share of the tokens of some rows, spread over the first `rows`, that belong to documents."""
    if not isinstance(options.sources[0], SourceOptions) and prepared.statistics is None:
        return 1.0
    chosen = np.unique(np.linspace(0, rows - 1, min(rows, 500)).astype(np.int64)).tolist()
    read = [sum(span.end - span.begin for span in prepared.train.documents(row)) for row in chosen]
    return sum(read) / (len(chosen) * prepared.train.sequence_length)
