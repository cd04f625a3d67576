"""A step as it was made: measured, and neither counted nor written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm.train.engine import StepResult
from lm.train.timeline import Step


@dataclass(frozen=True)
class Attempt:
    """What is known of a step before anything is decided about it.

    step: what it was. flops: of all ranks. seconds: that it took, data_seconds of them for reading. figures: others for
    its record, the hash of its batch among them.
    """

    step: Step
    result: StepResult
    flops: float
    seconds: float
    data_seconds: float
    figures: Mapping[str, Any]
