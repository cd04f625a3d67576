"""Which text of a source is held out: by a hash of each document's content, so that others may come and go.

A source too small for chance still gets a part on either side. Where no document falls below the fraction, the one
with the smallest hash is held out; where all do, the one with the largest is kept. A source of a single document is
cut in two at a line break: its end is held out, and from then on it is two documents. A sample is never cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lm.data.fingerprint import unit_hash
from lm.data.options import ValidationOptions
from lm.data.readers import Document
from lm.data.samples import Sample
from lm.data.sources import Source
from lm.errors import UserError


@dataclass(frozen=True)
class Split:
    """The rule that divides one source.

    Attributes:
        held_out: hash of the content that is held out although it does not fall below the fraction, if any.
        kept: hash of the content that is trained on although it falls below the fraction, if any.
        divided: the source is a single document, whose end is held out.
    """

    options: ValidationOptions
    held_out: float | None = None
    kept: float | None = None
    divided: bool = False

    @classmethod
    def of(cls, source: Source, options: ValidationOptions) -> Split:
        """The rule for this source. Reads it until both sides are sure to get a document.

        Raises:
            UserError: the source is a single sample.
        """
        if options.fraction == 0:
            return cls(options)
        count, largest, smallest = 0, -1.0, 2.0
        for document in source.documents():
            count += 1
            place = _place(document, options)
            largest = max(largest, place)
            if options.max_bytes is None or len(document.utf8) <= options.max_bytes:
                smallest = min(smallest, place)
            if count > 1 and smallest < options.fraction <= largest:
                return cls(options)
        if count == 1:
            if isinstance(document, Sample):
                raise UserError(
                    f"data.validation.fraction: {source.key} is a single sample, which is not divided; add samples, or "
                    "set data.validation.fraction=0 to train without validation."
                )
            return cls(options, divided=True)
        return cls(
            options,
            held_out=smallest if options.fraction <= smallest <= 1 else None,
            kept=largest if largest < options.fraction else None,
        )

    def to_json(self) -> dict[str, Any]:
        """All but the options."""
        return {"held_out": self.held_out, "kept": self.kept, "divided": self.divided}

    def parts(self, document: Document) -> Iterator[tuple[Document, bool]]:
        """The document, or the two made of it, each with whether it is held out."""
        if self.divided:
            cut = _cut(document.utf8, self.options)
            for utf8, held_out in ((document.utf8[:cut], False), (document.utf8[cut:], True)):
                if utf8:
                    yield Document(utf8.decode(), utf8, origin=document.origin), held_out
            return
        if self.options.fraction == 0:
            yield document, False
            return
        place = _place(document, self.options)
        yield document, place != self.kept and (place < self.options.fraction or place == self.held_out)


def _place(document: Document, options: ValidationOptions) -> float:
    return unit_hash(document.utf8, "validation", options.seed)


def _cut(utf8: bytes, options: ValidationOptions) -> int:
    """Where the held-out end begins: a line that makes it just longer than the fraction, else the next line, else
    (one long line) the next character."""
    room = len(utf8) if options.max_bytes is None else options.max_bytes
    target = len(utf8) - min(max(1, round(options.fraction * len(utf8))), room)
    before = utf8.rfind(b"\n", 0, target) + 1
    if before and len(utf8) - before <= room:
        return before
    after = utf8.find(b"\n", target) + 1
    if 0 < after < len(utf8):
        return after
    starts = [at for at in range(max(1, target - 3), min(target + 4, len(utf8))) if utf8[at] & 0xC0 != 0x80]
    return next((at for at in starts if at >= target), starts[-1] if starts else len(utf8))
