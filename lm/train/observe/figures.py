"""Figures that ranks find apart, each of its own tokens, and that are told as one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Mean:
    """A sum over so many values; those of several ranks are the sum over all of them."""

    total: float
    count: float

    def joined(self, other: Self) -> Self:
        return type(self)(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else math.nan


class RootMean(Mean):
    """The same of squares, told as the root of their mean."""

    @property
    def value(self) -> float:
        return math.sqrt(super().value)


@dataclass(frozen=True)
class Largest:
    """The largest of some values."""

    value: float

    def joined(self, other: Self) -> Self:
        return type(self)(max(self.value, other.value))


Figure = Mean | RootMean | Largest
Figures = Mapping[str, Figure]


def joined(found: Iterable[Figures]) -> dict[str, float]:
    """The values of figures from several ranks, by name; a name that only some of them have is theirs alone."""
    together: dict[str, Figure] = {}
    for figures in found:
        for name, figure in figures.items():
            before = together.get(name)
            together[name] = figure if before is None else before.joined(figure)  # type: ignore[arg-type]
    return {name: figure.value for name, figure in together.items()}
