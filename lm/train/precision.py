"""The dtypes of `train.precision`, and which of them this machine trains in."""

from __future__ import annotations

import torch

from lm.errors import UserError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def require_precision(precision: str) -> None:
    """Raises UserError for a precision that DeepSpeed refuses on this machine."""
    if precision == "fp16" and not _has_fp16():
        raise UserError("train.precision: fp16 needs a GPU, or a CPU that computes in it: use bf16, or fp32")


def _has_fp16() -> bool:
    return torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_fp16_supported()
