"""Sources that are made up by a rule: see `lm.data.recall`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lm.options import Options

_Weight = Annotated[
    float,
    Field(
        gt=0,
        allow_inf_nan=False,
        description="Share of the training rows, relative to the other sources' weights. Every row is a fresh one.",
    ),
]
_HeldOut = Annotated[int, Field(ge=0, lt=2**31, description="Rows to validate on, always the same ones; 0 for none.")]


class GeneratedOptions(Options):
    """What every generated source says."""

    weight: _Weight = 1.0
    held_out_rows: _HeldOut = 512

    def check(self, sequence_length: int, numbers: int) -> None:
        """Raises ValueError, naming the key to change, where there can be no such row."""


class MqarOptions(GeneratedOptions):
    """Multi-query associative recall: key-value pairs, then each key again, at which its value is to be found.

    Rows, alpha and fillers are Zoology's (arXiv 2312.04927). The lower half of the numbers are keys, the upper values.
    """

    kind: Literal["mqar"] = Field(description="Keys and values, made up.")
    pairs: int = Field(ge=1, description="Pairs in a row, and queries; a row has four times as many tokens or more.")
    alpha: float = Field(
        default=1.0,
        gt=0,
        le=100,
        description="A gap of 2 g tokens before a query has the weight (g + 1)^(alpha - 1): 1 is even, Zoology's 0.01 "
        "asks most of them soon.",
    )
    fillers: Literal["random", "zero"] = Field(
        default="random", description="What stands between the queries: any of the numbers, or 0."
    )

    def check(self, sequence_length: int, numbers: int) -> None:
        if 4 * self.pairs > sequence_length:
            raise ValueError(f"pairs {self.pairs} need rows of {4 * self.pairs} tokens; they have {sequence_length}")
        if self.pairs > numbers // 2 - 1:
            raise ValueError(f"pairs {self.pairs} need {2 * self.pairs + 2} numbers; the tokenizer has {numbers}")


class CopyOptions(GeneratedOptions):
    """Distinct numbers, some of which come again at the row's end; each of these but the first is to be predicted."""

    kind: Literal["copy"] = Field(description="Copies at a distance, made up.")
    length: int = Field(ge=2, description="Tokens that come again.")
    distance: int | None = Field(
        default=None, ge=2, description="Tokens from each to its copy; none: the first ones of the row come again."
    )

    def check(self, sequence_length: int, numbers: int) -> None:
        before = sequence_length - self.length
        distance = before if self.distance is None else self.distance
        if not self.length <= distance <= before:
            raise ValueError(
                f"length {self.length} at a distance of {distance} does not fit: the distance is at least the length, "
                f"and both together at most the {sequence_length} tokens of a row"
            )
        if before > numbers:
            raise ValueError(f"length {self.length} leaves {before} tokens to differ; the tokenizer has {numbers}")


class ParityOptions(GeneratedOptions):
    """Bits; at each the parity of all so far is to be told, which takes a state and no recall."""

    kind: Literal["parity"] = Field(description="Bits, made up.")
