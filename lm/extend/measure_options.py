"""The run file's `measure` section: what is compared before and after an extension."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from lm.errors import UserError
from lm.options import Options

MOST_LAST_TOKENS = 256
"""Targets of the last-tokens protocol unless `last_k` says otherwise."""

Length = Annotated[int, Field(ge=4)]
Depth = Annotated[float, Field(ge=0, le=1)]


class PasskeyOptions(Options):
    """Retrieval of a number hidden in filler, by how far into the text it stands and how long that is."""

    lengths: tuple[Length, ...] | None = Field(
        default=None, min_length=1, description="Tokens of prompt and answer; none: those of `measure.lengths`."
    )
    depths: tuple[Depth, ...] = Field(
        default=(0.0, 0.25, 0.5, 0.75, 1.0),
        min_length=1,
        description="Where the number stands: 0 at the front, 1 at the end.",
    )
    trials: int = Field(default=2, ge=1, description="Numbers hidden at each depth and length.")


class MeasureOptions(Options):
    """What an extension gained: perplexity and retrieval of the base, of its new positions alone, and of the result."""

    lengths: tuple[Length, ...] | None = Field(
        default=None,
        min_length=1,
        description="Contexts in tokens; none: half of the base's, then doubled up to extend.target_length.",
    )
    windows: int = Field(
        default=4,
        ge=1,
        description="Windows of held-out text at each length and for each protocol, as far as the text reaches.",
    )
    last_k: int | None = Field(
        default=None,
        ge=1,
        description="Tokens that are predicted behind each length; none: 256, or half of the shortest length if less.",
    )
    passkey: PasskeyOptions | None = Field(
        default=PasskeyOptions(), description="Passkey retrieval; null leaves it out."
    )

    @model_validator(mode="after")
    def _last_tokens_have_a_context(self) -> Self:
        if self.lengths is not None and self.last_k is not None and min(self.lengths) <= self.last_k:
            raise ValueError(
                f"lengths: {min(self.lengths)} tokens leave no context for the last {self.last_k}: raise it, or lower "
                "last_k"
            )
        return self

    @property
    def longest(self) -> int:
        """The longest length that is given; 0 where none is."""
        passkey = self.passkey.lengths if self.passkey is not None else None
        return max((*(self.lengths or ()), *(passkey or ())), default=0)

    def resolved_lengths(self, context: int, target_length: int) -> tuple[int, ...]:
        """Rising lengths, none twice. context: of the base."""
        if self.lengths is not None:
            return tuple(sorted(set(self.lengths)))
        lengths, length = [], max(context // 2, min(4, target_length))
        while length < target_length:
            lengths.append(length)
            length *= 2
        return (*lengths, target_length)

    def check(self, context: int, target_length: int) -> None:
        """Raises UserError where the last tokens have no context at the shortest length. context: of the base."""
        shortest = min(self.resolved_lengths(context, target_length))
        if self.resolved_last_k(shortest) >= shortest:
            raise UserError(
                f"measure.last_k: given {self.last_k}; the shortest of measure.lengths is {shortest} tokens (half of "
                "the base's context unless given): lower last_k, or give longer lengths"
            )

    def resolved_last_k(self, shortest: int) -> int:
        """Targets behind each length, of which `shortest` is the least."""
        return self.last_k or min(MOST_LAST_TOKENS, shortest // 2)
