"""The run file's `observe` section."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lm.options import Options


class ObserveOptions(Options):
    """What is looked at inside the model while it trains. With these defaults it costs under 1 % of the time."""

    every: int | None = Field(
        default=20,
        ge=1,
        description="Steps between looks into the layers: attention logits and entropy, gates, sizes of activations "
        "and gradients, loss by position. The first and the last step are looked at, too; null never looks.",
    )
    queries: int = Field(default=32, ge=1, description="Tokens of a rank whose attention and gates a look reads.")
    recall_every: int | None = Field(
        default=200, ge=1, description="Steps between recall probes, with one more after the last step; null: none."
    )
    recall_lengths: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(1, 2, 4), min_length=1, description="Lengths of the probes, in rows of data.sequence_length."
    )
    recall_samples: int = Field(default=2, ge=1, description="Probes of each length.")
