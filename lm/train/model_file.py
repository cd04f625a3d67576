"""The final weights, put together from a checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lm.train.checkpoint import StateFiles
from lm.train.tensor_file import write_tensors

WEIGHTS = "model.safetensors"


def full_weights(checkpoint: Path, model: nn.Module) -> dict[str, Tensor]:
    """The fp32 weights of a checkpoint by parameter name, shaped as `model`'s (which may be sharded or on meta)."""
    weights = {}
    with StateFiles(checkpoint) as files:
        for name, parameter in model.named_parameters():
            # Under ZeRO-3 a parameter's own shape is empty.
            weights[name] = torch.empty(tuple(getattr(parameter, "ds_shape", parameter.shape)))
            files.read("weight", name, 0, weights[name].view(-1))
    return weights


def save_weights(folder: Path, checkpoint: Path, model: nn.Module) -> None:
    """Writes `model.safetensors` with the checkpoint's fp32 weights into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (WEIGHTS + ".tmp")
    write_tensors(temporary, full_weights(checkpoint, model), {"format": "pt"})
    temporary.replace(folder / WEIGHTS)
