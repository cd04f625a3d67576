"""Rotary position embedding (RoFormer, arXiv 2104.09864), half-split as in Llama, and its scaling to long contexts."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lm.model.documents import Documents
from lm.options import Options


class LinearScaling(Options):
    """Position interpolation (arXiv 2306.15595): every angle divided by the factor."""

    rope_type: Literal["linear"] = "linear"
    factor: float = Field(ge=1, description="How many times longer the context becomes.")

    @property
    def amplitude(self) -> float:
        """What cosine and sine are multiplied by."""
        return 1.0

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        """The scaled radians per token of each pair of channels, [head_dim / 2] float64."""
        return frequencies / self.factor


class Llama3Scaling(LinearScaling):
    """Llama 3.1's: slow frequencies are divided by the factor, fast ones stay, those between are blended."""

    rope_type: Literal["llama3"] = "llama3"  # type: ignore[assignment]
    low_freq_factor: float = Field(gt=0, description="Slower than this many turns in the old context: divided.")
    high_freq_factor: float = Field(gt=0, description="Faster than this many turns in the old context: kept.")
    original_max_position_embeddings: int = Field(ge=1, description="The old context in tokens.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must exceed low_freq_factor: frequencies between them are blended")
        return self

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        turns = self.original_max_position_embeddings * frequencies / (2 * math.pi)
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return torch.lerp(frequencies / self.factor, frequencies, kept.clamp(0, 1))


class YarnScaling(LinearScaling):
    """YaRN (arXiv 2309.00071): interpolation by parts, blended along the channels, and sharper attention."""

    rope_type: Literal["yarn"] = "yarn"  # type: ignore[assignment]
    original_max_position_embeddings: int = Field(ge=1, description="The old context in tokens.")
    beta_fast: float = Field(32.0, gt=0, description="Channels with more turns than this in the old context stay.")
    beta_slow: float = Field(1.0, gt=0, description="Channels with fewer turns than this are divided by the factor.")
    attention_factor: float | None = Field(
        None, gt=0, description="Multiplies queries and keys; none: 0.1 ln(factor) + 1."
    )
    truncate: bool = Field(True, description="Round the blended range outwards to whole channels.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.beta_fast < self.beta_slow:
            raise ValueError(
                f"beta_fast {self.beta_fast} is below beta_slow {self.beta_slow}: it must be at least that"
            )
        return self

    @property
    def amplitude(self) -> float:
        return 0.1 * math.log(self.factor) + 1 if self.attention_factor is None else self.attention_factor

    def scale(self, frequencies: Tensor, theta: float) -> Tensor:
        head_dim = 2 * len(frequencies)
        low, high = (
            head_dim * math.log(self.original_max_position_embeddings / (2 * math.pi * turns)) / (2 * math.log(theta))
            for turns in (self.beta_fast, self.beta_slow)
        )
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, head_dim - 1)
        channel = torch.arange(len(frequencies), dtype=torch.float64, device=frequencies.device)
        divided = ((channel - low) / max(high - low, 1e-3)).clamp(0, 1)
        return torch.lerp(frequencies, frequencies / self.factor, divided)


RopeScaling = Annotated[LinearScaling | Llama3Scaling | YarnScaling, Field(discriminator="rope_type")]


def rope_table(
    positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype, scaling: LinearScaling | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine [n, 1, head_dim / 2] of the angles `positions[n] * theta^(-2j / head_dim)`, scaled if asked.

    Angles are formed in float64: float32 loses a thousandth of a radian by position 16,384.
    """
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64, device=positions.device) / head_dim)
    if scaling is not None:
        frequencies = scaling.scale(frequencies, theta)
    angles = positions.double()[:, None, None] * frequencies
    amplitude = 1.0 if scaling is None else scaling.amplitude
    return (angles.cos() * amplitude).to(dtype), (angles.sin() * amplitude).to(dtype)


def shared_table(
    documents: Documents, head_dim: int, theta: float, dtype: torch.dtype, scaling: LinearScaling | None, unit: int = 1
) -> tuple[Tensor, Tensor]:
    """`rope_table` of a stream's positions in units of so many tokens: made once for all layers that need the same."""
    return documents.memo(
        ("rope", head_dim, theta, scaling, dtype, unit),
        lambda: rope_table(documents.position.div(unit, rounding_mode="floor"), head_dim, theta, dtype, scaling),
    )


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates the pairs (x[..., j], x[..., j + d/2]) of x [n, heads, d] by the angles of the table."""
    cos, sin = table
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
