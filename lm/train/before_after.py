"""What an extension gained and what it cost, as kept in `extension.json` and shown in the report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Self

Kind = Literal["last_tokens", "window_mean", "passkey"]
BEFORE, ROPE_ONLY, AFTER, CONTROL = "before", "rope only", "after", "full attention"
"""The untouched base; the base with the new rotary positions, untrained; the result; a run with full attention."""


@dataclass(frozen=True)
class Figure:
    """One measurement at one context length.

    value: of last_tokens and window_mean the mean loss in nats per token, of passkey the share found at `depth`, which
    the others have not. stderr: of the value over `units` texts, blocks of windows, or trials; None for one.
    """

    kind: Kind
    length: int
    value: float
    stderr: float | None
    units: int
    depth: float | None = None

    @property
    def key(self) -> tuple[Kind, int, float | None]:
        """What was measured; one model has one figure for it."""
        return self.kind, self.length, self.depth


@dataclass(frozen=True)
class Cost:
    """What a training took. tokens_per_second: median over steps. peak_memory: bytes. None: not in its metrics."""

    attention: str
    steps: int
    trained_parameters: int
    parameters: int
    tokens_per_second: float | None
    peak_memory: float | None


@dataclass(frozen=True)
class Measured:
    """What is known of one model. state: names its weights, so that figures of others are not taken for its own."""

    state: str
    figures: tuple[Figure, ...] = ()
    cost: Cost | None = None

    def of(self, kind: Kind) -> list[Figure]:
        """The figures of one kind, by rising length and depth."""
        found = (figure for figure in self.figures if figure.kind == kind)
        return sorted(found, key=lambda figure: (figure.length, figure.depth or 0.0))

    def lacks(self, wanted: Iterable[tuple[Kind, int, float | None]]) -> list[tuple[Kind, int, float | None]]:
        """Those of the wanted measurements that are still to be made, in their order."""
        done = {figure.key for figure in self.figures}
        return [key for key in wanted if key not in done]


@dataclass(frozen=True)
class BeforeAfter:
    """An extension's models, by name, in the order of the report.

    settings: what all figures share: context (of the base), target_length, last_k, windows, trials, text (its digest).
    """

    settings: Mapping[str, Any]
    models: Mapping[str, Measured] = field(default_factory=dict)

    def with_model(self, name: str, measured: Measured) -> Self:
        """The same with one model added or replaced."""
        return replace(self, models={**self.models, name: measured})

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of `to_json`. Raises KeyError or TypeError where a field is missing or of another shape."""
        return cls(values["settings"], {name: _measured(model) for name, model in values["models"].items()})


def _measured(values: Mapping[str, Any]) -> Measured:
    figures = (Figure(**figure | {"value": _number(figure["value"])}) for figure in values["figures"])
    cost = values["cost"]
    return Measured(values["state"], tuple(figures), None if cost is None else Cost(**cost))


def _number(value: float | None) -> float:
    return math.nan if value is None else value  # JSON has no word for what is not finite
