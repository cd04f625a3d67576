"""How a tensor of rows lies in memory, for kernels that read it by address."""

from __future__ import annotations

from torch import Tensor


def repeating(x: Tensor) -> tuple[Tensor, int, int]:
    """Of x [N, *C]: a tensor, elements from row to row, and channels until a row repeats.

    Rows expanded over leading channel dimensions are read where they lie: keys that heads share are not copied.
    """
    row = x[0]
    while row.dim() and (row.stride(0) == 0 or row.shape[0] == 1):
        row = row[0]
    if row.is_contiguous():
        return x, x.stride(0), row.numel()
    return x.contiguous(), row.numel(), row.numel()
