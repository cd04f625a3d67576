"""Which source gives the r-th row of the run, by weights and by what each source may give, in arithmetic alone.

While no source has reached its end, the shares are exact: among the first r rows, the last source with share p has had
floor(r p), and the others divide the remaining rows in the same way. Where a source has given all it may, the others
go on by their weights; so a run falls into at most as many spans as there are sources.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction

from lm.errors import UserError


class Mixing:
    """The sources of all rows.

    Attributes:
        num_rows: rows until every source has given all it may; None where there is no end.
    """

    def __init__(
        self, rows: Sequence[int], weights: Sequence[float], max_epochs: Sequence[float | None] | None = None
    ) -> None:
        """rows: of each source in one epoch. weights: 0 leaves a source out. max_epochs: None gives any number."""
        caps = max_epochs or [None] * len(rows)
        if not len(rows) == len(weights) == len(caps) or not rows or min(rows) < 1 or min(weights) < 0:
            raise ValueError(f"every source needs rows and a weight, not rows {rows} and weights {weights}")
        if not any(weights):
            raise ValueError("at least one source needs a weight above 0")
        # Weights are taken as the decimals that the user wrote, so 0.1 is a tenth and shares are exact.
        fractions = [Fraction(str(weight)) for weight in weights]
        scale = math.lcm(*(fraction.denominator for fraction in fractions))
        parts = [int(fraction * scale) for fraction in fractions]
        room = [
            None if cap is None else max(1, int(Fraction(str(cap)) * size))
            for cap, size in zip(caps, rows, strict=True)
        ]
        self._begins: list[int] = []
        self._spans: list[tuple[_Cascade, list[int]]] = []
        self.num_rows = self._lay_out(parts, room)

    def _lay_out(self, parts: list[int], room: list[int | None]) -> int | None:
        begin, had = 0, [0] * len(parts)
        while any(parts):
            cascade = _Cascade(parts)
            self._begins.append(begin)
            self._spans.append((cascade, list(had)))
            limits = [
                cascade.rows_until(source, limit - had[source])
                for source, limit in enumerate(room)
                if limit is not None and parts[source]
            ]
            if not limits:
                return None
            length = min(limits)
            had = [count + cascade.count(source, length) for source, count in enumerate(had)]
            parts = [0 if had[source] == room[source] else part for source, part in enumerate(parts)]
            begin += length
        return begin

    def locate(self, index: int) -> tuple[int, int]:
        """The source of a global row, and how many rows that source has given before it.

        Raises UserError behind the last row.
        """
        if index < 0:
            raise IndexError(f"row {index} is negative")
        if self.num_rows is not None and index >= self.num_rows:
            raise UserError(
                f"data.sources: every source has reached its max_epochs after {self.num_rows:,} rows, and the run asks "
                "for more: raise max_epochs of one, leave it out, or train fewer steps."
            )
        span = bisect_right(self._begins, index) - 1
        cascade, had = self._spans[span]
        source, number = cascade.locate(index - self._begins[span])
        return source, had[source] + number

    def counts(self, rows: int) -> list[int]:
        """How many of the first `rows` rows each source gives."""
        rows = rows if self.num_rows is None else min(rows, self.num_rows)
        span = max(0, bisect_right(self._begins, rows) - 1)
        cascade, had = self._spans[span]
        return [count + cascade.count(source, rows - self._begins[span]) for source, count in enumerate(had)]


class _Cascade:
    """Exact shares without end."""

    def __init__(self, parts: Sequence[int]) -> None:
        self._parts = list(parts)
        self._totals = [sum(parts[: source + 1]) for source in range(len(parts))]

    def locate(self, index: int) -> tuple[int, int]:
        """The source of a row, and how many rows that source has given before it."""
        for source in range(len(self._parts) - 1, 0, -1):
            if not self._parts[source]:
                continue
            before = index * self._parts[source] // self._totals[source]
            if (index + 1) * self._parts[source] // self._totals[source] > before:
                return source, before
            index -= before
        return 0, index

    def count(self, source: int, rows: int) -> int:
        """How many of the first `rows` rows the source has given."""
        for other in range(len(self._parts) - 1, source, -1):
            if self._parts[other]:
                rows -= rows * self._parts[other] // self._totals[other]
        return rows * self._parts[source] // self._totals[source] if self._parts[source] else 0

    def rows_until(self, source: int, count: int) -> int:
        """The least number of rows of which the source has given `count`."""
        low, high = 0, (count + len(self._parts)) * self._totals[-1] // self._parts[source] + 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.count(source, middle) >= count else (middle + 1, high)
        return low
