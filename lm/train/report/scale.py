"""From values to places on a chart's axis: ranges, ticks people expect, and their labels."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

MOST_TICKS = 9
SMALLEST, LARGEST = 1e-90, 1e90
SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


@dataclass(frozen=True)
class Axis:
    """What an axis shows: its label, a logarithm's base or None for linear, and whether it begins at 0.

    up_to: a value that a linear axis reaches in any case, such as 1 for shares.
    """

    label: str
    log: Literal[2, 10] | None = None
    from_zero: bool = False
    up_to: float | None = None

    def shows(self, value: float | None) -> bool:
        """Whether the value has a place on this axis: finite (below 1e90), and above 0 on a logarithmic one."""
        return value is not None and abs(value) < LARGEST and (self.log is None or value > SMALLEST)

    def share(self, value: float, low: float, high: float) -> float:
        """Where a value that it shows lies from `low` (0) to `high` (1); 0 where these are one."""
        if self.log is not None:
            value, low, high = (math.log(number) for number in (value, low, high))
        return (value - low) / (high - low) if high > low else 0.0


STEP = Axis("step")


@dataclass(frozen=True)
class Scale:
    """A range of values laid over pixels: `low` at pixel `start`, `high` at pixel `end`; monotone in between."""

    low: float
    high: float
    start: float
    end: float
    log: Literal[2, 10] | None = None

    @classmethod
    def fit(cls, values: Iterable[float], axis: Axis, start: float, end: float) -> Self:
        """The scale that holds all values, which `axis` must show; a single value gets room around it."""
        values = list(values)
        low, high = (min(values), max(values)) if values else (1.0, 2.0)
        if axis.from_zero and axis.log is None:
            low, high = min(low, 0.0), max(high, 0.0)
        if axis.up_to is not None and axis.log is None:
            high = max(high, axis.up_to)
        if axis.log is not None and high <= low * (1 + 1e-9):
            low, high = low / 2, high * 2
        elif axis.log is None and high - low <= max(1e-9 * max(abs(low), abs(high)), SMALLEST):
            room = max(abs(low), abs(high)) / 2
            room = room if room > SMALLEST else 1.0
            low, high = low - room, high + room
        return cls(low, high, start, end, axis.log)

    def widened(self, share: float) -> Self:
        """The same pixels for a range that is wider by this share at each end that is not 0."""
        if self.log is not None:
            factor = (self.high / self.low) ** share
            return type(self)(self.low / factor, self.high * factor, self.start, self.end, self.log)
        room = (self.high - self.low) * share
        low, high = self.low - room * (self.low != 0), self.high + room * (self.high != 0)
        return type(self)(low, high, self.start, self.end)

    def place(self, value: float) -> float:
        """The pixel of a value inside the range."""
        low, high = self.low, self.high
        if self.log is not None:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Rising round values inside the range: multiples of 1, 2 or 5 times a power of ten, or a log's powers."""
        if self.log == 2:
            return _thinned(_powers(self.low, self.high, 2.0))
        if self.log == 10:
            ticks = _powers(self.low, self.high, 10.0)
            if len(ticks) < 4:
                tens = _powers(self.low / 10, self.high, 10.0)
                ticks = [ten * m for ten in tens for m in (1, 2, 5) if self.low <= ten * m <= self.high]
            return _thinned(ticks) if len(ticks) >= 3 else _round_ticks(self.low, self.high)
        return _round_ticks(self.low, self.high)


def _powers(low: float, high: float, base: float) -> list[float]:
    first, last = math.ceil(math.log(low, base) - 1e-9), math.floor(math.log(high, base) + 1e-9)
    return [base**exponent for exponent in range(first, last + 1)]


def _thinned(ticks: list[float]) -> list[float]:
    return ticks[:: math.ceil(len(ticks) / MOST_TICKS)] if ticks else ticks


def _round_ticks(low: float, high: float, about: int = 7) -> list[float]:
    step = _round_step((high - low) / about)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 2.5, 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next((m * power for m in (1.0, 2.0, 2.5, 5.0) if m * power >= least * (1 - 1e-9)), 10 * power)


def tick_labels(ticks: list[float]) -> list[str]:
    """Short labels in one notation for all ticks of an axis."""
    sizes = [abs(tick) for tick in ticks if tick] or [1.0]
    smallest, largest = min(sizes), max(sizes)
    if largest < 1e-3 or largest >= 1e15 or (smallest < 1e-3 and smallest < largest / 1e4):
        return [_exponent(tick) for tick in ticks]
    if smallest < largest / 100:
        return [_suffixed(tick) for tick in ticks]
    scale, suffix = next(((scale, name) for scale, name in SUFFIXES if largest >= max(scale, 1e4)), (1.0, ""))
    digits = next((d for d in range(12) if all(_exact(tick / scale, d) for tick in ticks)), 12)
    if digits > 2 and largest < 1e6 and all(_exact(tick, 0) for tick in ticks):  # powers of two
        return [f"{tick:.0f}" for tick in ticks]
    return [f"{tick / scale:.{digits}f}{suffix}" if tick else "0" for tick in ticks]


def _exact(value: float, digits: int) -> bool:
    return math.isclose(round(value, digits), value, abs_tol=1e-12)


def _exponent(value: float) -> str:
    mantissa, _, exponent = f"{value:.6e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}" if value else "0"


def _suffixed(value: float) -> str:
    """`20000` -> `20K`, but `16384` as it is."""
    scale, suffix = next(
        ((s, name) for s, name in SUFFIXES if value >= max(s, 1e4) and not value % (s / 10)), (1.0, "")
    )
    return f"{value / scale:.12g}{suffix}"
