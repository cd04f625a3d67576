"""Which text of a run is held out: by a hash of each document's content, so that others may come and go.

A source too small for chance still gets a part on either side. Where no document falls below the fraction, the one
with the smallest hash is held out; where all do, the one with the largest is kept. A source of a single document is
cut in two at a line break: its end is held out, and from then on it is two documents. A sample is never cut.

These exceptions hold in all sources of a run (`joined`): a document is on the same side wherever it stands, so what one
source holds out is trained on through no other. A source that gives nothing to hold out for that gives none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lm.data.fingerprint import unit_hash
from lm.data.options import ValidationOptions
from lm.data.readers import Document
from lm.data.samples import Sample
from lm.data.sources import Source
from lm.errors import UserError

_EXCEPTIONS = ("held_out", "kept", "divided")


@dataclass(frozen=True)
class Split:
    """The rule that divides one source, or all of a run.

    Attributes:
        held_out: hashes of contents that are held out although they do not fall below the fraction.
        kept: hashes of contents that are trained on although they fall below the fraction.
        divided: hashes of contents whose end is held out, whatever else is said of them.
        shortest: bytes of the shortest document, where every one is longer than `max_bytes`.
    """

    options: ValidationOptions
    held_out: frozenset[float] = frozenset()
    kept: frozenset[float] = frozenset()
    divided: frozenset[float] = frozenset()
    shortest: int | None = None

    @classmethod
    def of(cls, source: Source, options: ValidationOptions) -> Split:
        """The rule for this source. Reads it until both sides are sure to get a document.

        Raises:
            UserError: the source is a single sample.
        """
        if options.fraction == 0:
            return cls(options)
        rule = cls(options)
        count, largest, smallest, shortest = 0, -1.0, 2.0, 2**62
        for document in source.documents():
            count += 1
            place = rule.place(document)
            largest, shortest = max(largest, place), min(shortest, len(document.utf8))
            if options.max_bytes is None or len(document.utf8) <= options.max_bytes:
                smallest = min(smallest, place)
            if count > 1 and smallest < options.fraction <= largest:
                return rule
        if count == 1:
            if isinstance(document, Sample):
                raise UserError(
                    f"data.validation.fraction: {source.key} is a single sample, which is not divided; add samples, or "
                    "set data.validation.fraction=0 to train without validation."
                )
            return cls(options, divided=frozenset([place]))
        return cls(
            options,
            held_out=frozenset([smallest] if options.fraction <= smallest <= 1 else []),
            kept=frozenset([largest] if largest < options.fraction else []),
            shortest=shortest if smallest > 1 else None,
        )

    @classmethod
    def joined(cls, splits: Iterable[Split]) -> Split:
        """The rule of a run, from those of its sources, of which there is one or more; they have the same options."""
        found = list(splits)
        exceptions: dict[str, Any] = {
            name: frozenset().union(*(getattr(split, name) for split in found)) for name in _EXCEPTIONS
        }
        return cls(found[0].options, **exceptions)

    def to_json(self) -> dict[str, Any]:
        """All but the options."""
        return {name: sorted(getattr(self, name)) for name in _EXCEPTIONS} | {"shortest": self.shortest}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], options: ValidationOptions, source: Source) -> Split:
        """What `to_json` gave for this source, now or when it said `true` of a source of a single document."""
        if values["divided"] is True:
            (document,) = source.documents()
            values = {**values, "divided": cls(options).place(document)}
        exceptions: dict[str, Any] = {name: _as_set(values[name]) for name in _EXCEPTIONS}
        return cls(options, **exceptions, shortest=values.get("shortest"))

    def place(self, document: Document) -> float:
        """The hash of a document's content that decides its side, in [0, 1); 1 where nothing is held out."""
        return unit_hash(document.utf8, "validation", self.options.seed) if self.options.fraction else 1.0

    def side(self, place: float) -> Literal["train", "held out", "both"]:
        """Where a document goes whose content has this hash."""
        if place in self.divided:
            return "both"
        if place in self.held_out or (place < self.options.fraction and place not in self.kept):
            return "held out"
        return "train"

    def differing(self, other: Split) -> list[float]:
        """Hashes of documents that go elsewhere by the other rule, ascending."""
        exceptions = self.held_out | self.kept | self.divided | other.held_out | other.kept | other.divided
        return sorted(place for place in exceptions if self.side(place) != other.side(place))

    def parts(self, document: Document, place: float) -> Iterator[tuple[Document, bool]]:
        """The document, or the two made of it, each with whether it is held out; place: its hash."""
        side = self.side(place)
        if side != "both":
            yield document, side == "held out"
        elif not isinstance(document, Sample):  # one that spells a text that is cut is left out: it is on both sides
            cut = _cut(document.utf8, self.options)
            for utf8, held_out in ((document.utf8[:cut], False), (document.utf8[cut:], True)):
                if utf8:
                    yield Document(utf8.decode(), utf8, origin=document.origin), held_out


def _as_set(value: Collection[float] | float | None) -> frozenset[float]:
    """Of what is written as a list, and before sources were compared as one number, null or false."""
    if value is None or value is False:
        return frozenset()
    return frozenset(value if isinstance(value, Collection) else [value])


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
