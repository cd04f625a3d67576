"""The run file's `deepspeed` section."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from lm.errors import did_you_mean
from lm.options import Options
from lm.train.deepspeed_keys import AIO_KEYS, OWNED, PASSED_THROUGH, REFUSED, SECTIONS, ZERO_KEYS, ZERO_REFUSED

OFFLOADS = ("offload_optimizer", "offload_param")


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
        for key in self.passed_through.get("aio", {}):
            if key not in AIO_KEYS:
                raise ValueError(f"DeepSpeed's aio has no setting '{key}'.{did_you_mean(str(key), sorted(AIO_KEYS))}")
        self._check_zero(self.zero)
        return self

    def _check_zero(self, zero: dict[str, Any]) -> None:
        if "stage" in zero:
            raise ValueError("remove zero_optimization.stage and use deepspeed.zero_stage instead")
        for key in zero:
            if key in ZERO_REFUSED:
                raise ValueError(f"remove zero_optimization.{key}: {ZERO_REFUSED[key]}")
            if key not in ZERO_KEYS:
                nearest = did_you_mean(str(key), sorted(ZERO_KEYS))
                raise ValueError(f"DeepSpeed's zero_optimization has no setting '{key}'.{nearest}")
        for key in (*OFFLOADS, "leaf_module"):
            if not isinstance(zero.get(key, {}), dict):
                raise ValueError(f"zero_optimization.{key} must be a mapping, not {zero[key]!r}")
        for key, stage in (("offload_optimizer", 1), ("offload_param", 3)):
            if key in zero and self.zero_stage < stage:
                raise ValueError(
                    f"zero_optimization.{key} needs deepspeed.zero_stage of at least {stage}, not {self.zero_stage}"
                )
        for key in self.on_nvme:
            if self.zero_stage < 3:
                raise ValueError(f"zero_optimization.{key}.device nvme needs deepspeed.zero_stage 3: use cpu below it")
            if not isinstance(zero[key].get("nvme_path"), str):
                raise ValueError(f"zero_optimization.{key}.device nvme needs nvme_path, a folder on a local disk")

    def effective_stage(self, precision: str) -> int:
        """The ZeRO stage of a run of `train.precision`.

        Without ZeRO DeepSpeed can only add up 16-bit gradients in 16 bits, which loses the later micro-batches.
        """
        return self.zero_stage if precision == "fp32" else max(self.zero_stage, 1)

    @property
    def zero(self) -> dict[str, Any]:
        """DeepSpeed's own settings of ZeRO."""
        return dict(self.passed_through.get("zero_optimization", {}))

    @property
    def on_nvme(self) -> list[str]:
        """Which of OFFLOADS lie in files."""
        return [key for key in OFFLOADS if self.zero.get(key, {}).get("device") == "nvme"]

    @property
    def passed_through(self) -> dict[str, Any]:
        """The settings handed to DeepSpeed as they are."""
        return dict(self.__pydantic_extra__ or {})
