"""The random generators of one process as tensors and numbers, so that no pickle is needed to keep them."""

from __future__ import annotations

import json
import random

import numpy as np
import torch
from torch import Tensor

State = tuple[dict[str, Tensor], dict[str, str]]


def capture() -> State:
    """The states of torch's, Python's and numpy's global generators: tensors, and metadata for the scalars."""
    version, words, python_normal = random.getstate()
    _, keys, position, has_normal, normal = np.random.get_state(legacy=True)
    tensors = {
        "torch": torch.get_rng_state(),
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
    }
    if torch.cuda.is_available():
        tensors["cuda"] = torch.cuda.get_rng_state()
    scalars = {"python": [version, python_normal], "numpy": [int(position), int(has_normal), float(normal)]}
    return tensors, {name: json.dumps(value) for name, value in scalars.items()}


def restore(state: State) -> None:
    """Puts the generators where `capture` saw them."""
    tensors, metadata = state
    scalars = {name: json.loads(value) for name, value in metadata.items()}
    version, python_normal = scalars["python"]
    random.setstate((version, tuple(tensors["python"].tolist()), python_normal))
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, *scalars["numpy"]))
    torch.set_rng_state(tensors["torch"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])


def seed(seed: int, step: int, rank: int) -> None:
    """Seeds all generators of a rank afresh, differently for every (seed, step, rank)."""
    words = np.random.SeedSequence((seed, step, rank)).generate_state(2, np.uint64)
    random.seed(int(words[0]))
    np.random.seed(int(words[0]) % 2**32)
    torch.manual_seed(int(words[1]) % 2**63)
