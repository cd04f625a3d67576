"""Rows made up by a rule, to train and test what a model can remember: no text, no files, fresh rows without end.

A row is a pure function of (seed, source, row), so the order of a run is arithmetic here, too. Everything is drawn from
uniform numbers of PCG64, whose stream numpy keeps, and so is the same wherever it is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.random import PCG64, Generator

from lm.data.recall_options import CopyOptions, GeneratedOptions, MqarOptions, ParityOptions
from lm.data.rows import IGNORED, Piece

ENDLESS = 2**40
"""Rows of one epoch where rows are made as they are read: more than any run reads."""


class GeneratedRows:
    """The first `count` rows of one generated source; those of another `seed` or `stream` are others."""

    def __init__(
        self, options: GeneratedOptions, numbers: int, sequence_length: int, seed: int, stream: int, count: int
    ) -> None:
        """numbers: tokens are below it."""
        self.sequence_length = sequence_length
        self.num_documents = count
        self._options = options
        self._numbers = numbers
        self._key = (seed, stream)

    def __len__(self) -> int:
        return self.num_documents

    def pieces(self, row: int) -> list[Piece]:
        return [Piece(row, self.sequence_length, 0)]

    def origin(self, document: int) -> tuple[str, int]:
        return type(self._options).__name__.removesuffix("Options").lower(), document

    def fill(self, row: int, tokens: np.ndarray, targets: np.ndarray) -> list[Piece]:
        """Writes one row, which is one document, as `lm.data.rows.Rows` has it."""
        random = Generator(PCG64([*self._key, row]))
        targets[:] = IGNORED
        _DRAW[type(self._options)](self._options, random, self._numbers, tokens, targets)
        return self.pieces(row)


def draw_mqar(options: MqarOptions, random: Generator, numbers: int, tokens: np.ndarray, targets: np.ndarray) -> None:
    """Multi-query associative recall by Zoology's rule (arXiv 2312.04927).

    K pairs k1 v1 k2 v2 ... come first, keys from 1 .. V/2 - 1, values from V/2 .. V - 1, none twice. Then each key
    comes once more, 2 g tokens after the pairs' end, gaps g drawn without replacement with weights
    (g + 1)^(alpha - 1); its value is the target there.
    """
    pairs, half = options.pairs, numbers // 2
    keys = 1 + _distinct(random, half - 1, pairs)
    values = half + _distinct(random, numbers - half, pairs)
    slots = (len(tokens) - 2 * pairs) // 2
    places = 2 * (pairs + _distinct(random, slots, pairs, np.arange(1, slots + 1) ** (options.alpha - 1)))
    tokens[:] = _uniform(random, numbers, len(tokens)) if options.fillers == "random" else 0
    tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2] = keys, values
    tokens[places], targets[places] = keys, values


def draw_copy(options: CopyOptions, random: Generator, numbers: int, tokens: np.ndarray, targets: np.ndarray) -> None:
    """Distinct tokens, of which `length` come again at the row's end; each but the first of these is a target."""
    begin = len(tokens) - options.length
    distance = begin if options.distance is None else options.distance
    tokens[:begin] = _distinct(random, numbers, begin)
    tokens[begin:] = tokens[begin - distance : len(tokens) - distance]
    targets[begin:-1] = tokens[begin + 1 :]


def draw_parity(
    options: ParityOptions, random: Generator, numbers: int, tokens: np.ndarray, targets: np.ndarray
) -> None:
    """Bits; the target of each is the parity of all up to it."""
    tokens[:] = _uniform(random, 2, len(tokens))
    targets[:] = np.cumsum(tokens) % 2


_DRAW: dict[type[GeneratedOptions], Callable[[Any, Generator, int, np.ndarray, np.ndarray], None]] = {
    MqarOptions: draw_mqar,
    CopyOptions: draw_copy,
    ParityOptions: draw_parity,
}


def _uniform(random: Generator, below: int, size: int) -> np.ndarray:
    """Whole numbers [size] from 0 .. below - 1."""
    return (random.random(size) * below).astype(np.int64)


def _distinct(random: Generator, below: int, size: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Distinct numbers [size] from 0 .. below - 1, each next one drawn with these weights from those that are left.

    Exponential waiting times end in that order (Efraimidis and Spirakis, 2006).
    """
    times = -np.log1p(-random.random(below)) / (1.0 if weights is None else weights)
    return np.argsort(times, kind="stable")[:size]
