"""What an evaluation on held-out text found, as kept in `evaluation.json` and shown in the report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

BINS_PER_OCTAVE = 4
_SCORE = re.compile(r"eval/(.+)@(\d+)")


@dataclass(frozen=True)
class PositionLoss:
    """Mean loss of the targets whose position in their document lies in [first, end): nats per token."""

    first: int
    end: int
    loss: float
    tokens: int


@dataclass(frozen=True)
class Evaluation:
    """A model on held-out text.

    step: optimizer steps the model had seen. loss: mean negative log-likelihood, nats per target token. accuracy: share
    of targets that the model finds most likely. tokens: target tokens. bytes: UTF-8 bytes of the text these tokens
    stand for, None where they stand for none. baselines: bits per byte of the same text by name of the method
    (`lm.train.compressors`).
    """

    step: int
    loss: float
    accuracy: float
    tokens: int
    bytes: int | None
    by_position: tuple[PositionLoss, ...] = ()
    baselines: Mapping[str, float] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """Per token; infinite where the loss is beyond what a float can raise."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float | None:
        """None where there is no text."""
        return None if self.bytes is None else self.loss * self.tokens / math.log(2) / self.bytes

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the derived figures for other programs."""
        return asdict(self) | {"perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises KeyError or TypeError where a field is missing or of another shape."""
        return cls(
            step=values["step"],
            loss=values["loss"] if values["loss"] is not None else math.nan,
            accuracy=values["accuracy"],
            tokens=values["tokens"],
            bytes=values["bytes"],
            by_position=tuple(PositionLoss(**part) for part in values["by_position"]),
            baselines=dict(values["baselines"]),
        )


def asked(keys: Iterable[str]) -> Iterator[tuple[str, str, int]]:
    """Those of a record's keys that are scores of tasks, `eval/TASK@LENGTH`, each with its task and length."""
    for key in keys:
        if found := _SCORE.fullmatch(key):
            yield key, found[1], int(found[2])


def loss_by_position(nll_sums: NDArray[np.float64], counts: NDArray[np.int64]) -> tuple[PositionLoss, ...]:
    """Means over bins of positions that grow geometrically, four to an octave; empty bins are left out.

    nll_sums, counts: [P], summed negative log-likelihood in nats and number of the targets at each position.
    """
    parts = []
    for first, end in position_bins(len(counts)):
        tokens = int(counts[first:end].sum())
        if tokens:
            parts.append(PositionLoss(first, end, float(nll_sums[first:end].sum()) / tokens, tokens))
    return tuple(parts)


def position_bins(positions: int) -> list[tuple[int, int]]:
    """[first, end) of bins that grow geometrically, `BINS_PER_OCTAVE` to an octave, and hold each position once."""
    borders = np.unique(np.rint(2.0 ** (np.arange(BINS_PER_OCTAVE * 64) / BINS_PER_OCTAVE)).astype(np.float64)) - 1
    borders = np.append(borders[borders < positions], positions).astype(np.int64)
    return list(zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True))
