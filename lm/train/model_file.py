"""The final weights, put together from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from lm.errors import UserError
from lm.train.checkpoint import StateFiles
from lm.train.tensor_file import sync_folder, write_tensors

WEIGHTS = "model.safetensors"


def full_weights(checkpoint: Path, model: nn.Module, kind: str = "weight") -> dict[str, Tensor]:
    """The fp32 weights of a checkpoint by name, shaped as `model`'s: the trained parameters, a tied one once.

    kind: `average.AVERAGE` for their moving average; UserError is raised where the run keeps none.
    """
    weights = {}
    with StateFiles(checkpoint) as files:
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            if not files.holds(kind, name):
                raise UserError(f"{checkpoint} holds no {kind} of '{name}': set train.average_decay for the next run")
            weights[name] = torch.empty(parameter.shape)
            files.read(kind, name, 0, weights[name].view(-1))
    return weights


def save_weights(folder: Path, weights: Mapping[str, Tensor]) -> None:
    """Writes `model.safetensors` into `folder`, in one step."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / (WEIGHTS + ".tmp")
    write_tensors(temporary, weights, {"format": "pt"})
    temporary.replace(folder / WEIGHTS)
    sync_folder(folder)
