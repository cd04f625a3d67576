"""The kernels that a run file asks for."""

from __future__ import annotations

from kernels import gated_scan, interval_attention
from lm.errors import UserError
from lm.train.options import TrainOptions


def prefer_backends(train: TrainOptions) -> None:
    """Makes kernels of this process run as `train` says. Raises UserError for one that this machine cannot run."""
    wanted = (
        ("attention_backend", interval_attention.prefer, train.attention_backend),
        ("scan_backend", gated_scan.prefer, train.scan_backend),
    )
    for key, prefer, name in wanted:
        try:
            prefer(name)
        except ValueError as error:
            raise UserError(f"train.{key}: {error}") from None
