"""The run file's `guard` section: what is done about a spike."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from lm.options import Options


class GuardOptions(Options):
    """A step whose loss or gradient norm stands out of those before it, before it is applied."""

    action: Literal["warn", "skip", "rewind"] = Field(
        default="warn",
        description="What is done about a spike: warn says so and trains on; skip leaves the step out; rewind goes "
        "back to the last healthy checkpoint and steps over all rows read since, those of the spike included.",
    )
    sigma: float = Field(
        default=8.0,
        gt=0,
        description="A spike lies so many standard deviations above the mean of the window, in loss or gradient norm.",
    )
    window: int = Field(default=128, ge=2, description="Applied steps that mean and deviation are taken over.")
    warmup_steps: int = Field(
        default=64, ge=2, description="Applied steps before anything is judged, and before a new level is."
    )
    margin: int = Field(
        default=10,
        ge=0,
        description="rewind: steps that should lie between the checkpoint and the spike, and between it and the spike "
        "before; damage is done before it shows.",
    )
    retries: int = Field(
        default=3,
        ge=1,
        description="skip: so many spikes in a row are left out, then the level counts as a new one; rewind: so many "
        "rewinds within a window of steps, then the run stops.",
    )

    @model_validator(mode="after")
    def _warmup_fits(self) -> GuardOptions:
        if self.warmup_steps > self.window:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, but the window only holds {self.window} steps")
        return self
