"""What attention over chunks needs of a scan: running values, scores of running keys, the states that end chunks."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels.backends import in_module
from kernels.gated_scan import default, gated_scan, scan_calls
from kernels.gated_scan.chunks import Chunks

_CPP = in_module("kernels.gated_scan.cpp_chunk_states")


class ChunkStates(NamedTuple):
    """score: [N, H], each query's with the running key; values: [N, H, D], running; final_*: [M, H, D]."""

    score: Tensor
    values: Tensor
    final_keys: Tensor
    final_values: Tensor


def chunk_states(
    gate: Tensor, query: Tensor, key: Tensor, value: Tensor, chunks: Chunks, finals: Tensor
) -> ChunkStates:
    """Scans keys and values with one gate, where head h has query and key h mod G.

    gate, value: [N, H, D]; query (scaled already), key: [N, G, D]. finals: [M] int64, ascending: tokens
    that are the last of their chunk. States are float32 (float64 for float64).
    One pass over memory each way where the scan's backend is `cpp`; elsewhere `composed_states`.
    """
    call = (gate, query, key, value, chunks, finals)
    if default(gate.device.type) == "cpp" and not (_CPP.unavailable() or _CPP.refuses(*call)):
        scan_calls(*_by_group(gate, key, value), chunks)
        return ChunkStates(*_CPP.run(*call))
    return composed_states(*call)


def composed_states(
    gate: Tensor, query: Tensor, key: Tensor, value: Tensor, chunks: Chunks, finals: Tensor
) -> ChunkStates:
    """The definition: `gated_scan`, and what is taken from its states."""
    keys, values = gated_scan(*_by_group(gate, key, value), chunks)
    score = (keys * query.to(keys.dtype)[:, None]).sum(-1).flatten(1)
    keys, values = keys.flatten(1, 2), values.flatten(1, 2)
    return ChunkStates(score, values, keys.index_select(0, finals), values.index_select(0, finals))


def _by_group(gate: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """What `gated_scan` takes, all [N, H / G, G, D]: the keys are a view that every G heads share."""
    gate, value = (torch.unflatten(x, 1, (-1, key.shape[1])) for x in (gate, value))
    return gate, (key[:, None].expand(-1, gate.shape[1], -1, -1), value)
