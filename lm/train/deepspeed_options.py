"""The run file's `deepspeed` section."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from lm.errors import did_you_mean
from lm.options import Options
from lm.train.deepspeed_keys import OWNED, PASSED_THROUGH, REFUSED, SECTIONS, ZERO_KEYS


class DeepSpeedOptions(Options):
    """The ZeRO stage, and any DeepSpeed setting that the run file has no name of its own for."""

    model_config = ConfigDict(extra="allow")

    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=0,
        description="What is sharded over the ranks: 1 optimizer, 2 and gradients, 3 and parameters; bf16 and fp16 "
        "need the fp32 gradients of 1 and run as 1 where 0 is given.",
    )

    @model_validator(mode="after")
    def _passed_through(self) -> DeepSpeedOptions:
        for key, value in self.passed_through.items():
            if key in OWNED:
                raise ValueError(f"'{key}' is set by the trainer: remove it and use {OWNED[key]} instead")
            if key in REFUSED:
                raise ValueError(f"remove '{key}': {REFUSED[key]}")
            if key not in PASSED_THROUGH:
                nearest = did_you_mean(key, ["zero_stage", *sorted(PASSED_THROUGH | OWNED.keys())])
                owner = next((f" (set it by {ours})" for name, ours in OWNED.items() if f"'{name}'" in nearest), "")
                raise ValueError(f"DeepSpeed has no setting '{key}'.{nearest}{owner}")
            if key in SECTIONS and not isinstance(value, dict):
                raise ValueError(f"'{key}' must be a mapping of DeepSpeed's settings, not {value!r}")
        self._check_zero(self.passed_through.get("zero_optimization", {}))
        return self

    def _check_zero(self, zero: dict[str, Any]) -> None:
        if "stage" in zero:
            raise ValueError("remove zero_optimization.stage and use deepspeed.zero_stage instead")
        for key in zero:
            if key not in ZERO_KEYS:
                nearest = did_you_mean(str(key), sorted(ZERO_KEYS))
                raise ValueError(f"DeepSpeed's zero_optimization has no setting '{key}'.{nearest}")
        for key in ("offload_optimizer", "offload_param", "leaf_module", "zenflow"):
            if not isinstance(zero.get(key, {}), dict):
                raise ValueError(f"zero_optimization.{key} must be a mapping, not {zero[key]!r}")
            device = zero.get(key, {}).get("device")
            if key.startswith("offload_") and device == "nvme":
                raise ValueError(
                    f"zero_optimization.{key}.device is nvme, where no checkpoint of this trainer can read it: use cpu"
                )
        for key, stage in (("offload_optimizer", 1), ("offload_param", 3)):
            if key in zero and self.zero_stage < stage:
                raise ValueError(
                    f"zero_optimization.{key} needs deepspeed.zero_stage of at least {stage}, not {self.zero_stage}"
                )

    @property
    def passed_through(self) -> dict[str, Any]:
        """The settings handed to DeepSpeed as they are."""
        return dict(self.__pydantic_extra__ or {})
