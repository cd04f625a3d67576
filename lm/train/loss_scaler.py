"""The loss scale of fp16: a state that a resumed run must have, and an end that DeepSpeed does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class LossScaler:
    """The loss scaler of a DeepSpeed engine in fp16, at any ZeRO stage."""

    def __init__(self, engine: Any) -> None:
        self._scaler = engine.optimizer.loss_scaler
        # DeepSpeed ends the program at the smallest scale, on one overflow more; skipped steps are counted instead.
        self._scaler.raise_error_at_min_scale = False

    @property
    def state(self) -> dict[str, float]:
        """Plain numbers, by name."""
        return {name: getattr(self._scaler, name) for name in STATE}

    def restore(self, state: Mapping[str, float]) -> None:
        """Goes on from a `state`; what it leaves out stays."""
        for name, value in state.items():
            setattr(self._scaler, name, value)
