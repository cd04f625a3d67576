"""The final weights, put together from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lm.train.checkpoint import StateFiles
from lm.train.tensor_file import sync_folder, write_tensors

WEIGHTS = "model.safetensors"


def full_weights(checkpoint: Path, model: nn.Module) -> dict[str, Tensor]:
    """The fp32 weights of a checkpoint by name, shaped as `model`'s: the trained parameters, a tied one once."""
    weights = {}
    with StateFiles(checkpoint) as files:
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            weights[name] = torch.empty(parameter.shape)
            files.read("weight", name, 0, weights[name].view(-1))
    return weights


def save_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes `model.safetensors` into `folder`, in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (WEIGHTS + ".tmp")
    write_tensors(temporary, weights, {"format": "pt"})
    temporary.replace(folder / WEIGHTS)
    sync_folder(folder)
