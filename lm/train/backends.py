"""The kernels that a run file asks for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch

from kernels import gated_scan, interval_attention
from lm.errors import UserError
from lm.model.options import ModelOptions
from lm.train.options import TrainOptions
from lm.train.precision import DTYPES
from lm.train.trainee import Trainee


def prefer_backends(train: TrainOptions, trainee: Trainee, device: torch.device) -> None:
    """Makes kernels of this process run as `train`, or the environment, says.

    Raises UserError for one that this machine cannot run, and for one that refuses what the run's layers will ask.
    """
    for key, operation, name in (
        ("attention_backend", interval_attention, train.attention_backend),
        ("scan_backend", gated_scan, train.scan_backend),
    ):
        asking = f"train.{key}"
        try:
            operation.prefer(name)
            if operation.named() is None:
                continue
            if os.environ.get(operation.ENVIRONMENT):
                asking = operation.ENVIRONMENT
            for call in _calls(operation is gated_scan, trainee.options, DTYPES[train.precision], device):
                operation.choose(None, device.type, *call)
        except ValueError as error:
            raise UserError(f"{asking}: {error}") from None


def _calls(scans: bool, model: ModelOptions, dtype: torch.dtype, device: torch.device) -> Iterable[tuple[Any, ...]]:
    """What the mixers of all layers ask, each once."""
    for name in dict.fromkeys(model.layer_names):
        mixer = model.mixers[name]
        call = (mixer.scan_call if scans else mixer.attention_call)(model.dimensions, dtype, device)
        if call is not None:
            yield call
