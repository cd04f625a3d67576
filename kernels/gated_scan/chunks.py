"""Where the gated scan starts over, and the layouts its loops run on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

MAX_LOOP = 64  # chunks longer than this are scanned in two levels


class Layout:
    """Segments that are stepped through side by side, longest first, so that the active ones are always a prefix.

    lengths: [K] int64 on the CPU, all >= 1; segment k follows segment k-1 in the stream of N rows.
    """

    def __init__(self, lengths: Tensor, device: torch.device) -> None:
        self.num_segments = len(lengths)
        self.num_steps = int(lengths.max())
        self.uniform = int(lengths.min()) == self.num_steps
        starts = lengths.cumsum(0) - lengths
        self._order = torch.empty(0)
        self._rows: list[Tensor] = []
        if not self.uniform:
            ordered, order = lengths.sort(descending=True, stable=True)
            active = torch.searchsorted(-ordered, -torch.arange(self.num_steps, device=ordered.device)).tolist()
            self._rows = [(starts[order[:count]] + step).to(device) for step, count in enumerate(active)]
            self._order = order.to(device)

    def count(self, step: int) -> int:
        """How many segments are longer than `step`."""
        return self.num_segments if self.uniform else len(self._rows[step])

    def take(self, x: Tensor, step: int, count: int | None = None) -> Tensor:
        """x [N, ...] -> [count, ...], row number `step` of the first `count` segments (default: all that have it).

        A view of x when the segments are equally long, else a copy.
        """
        if self.uniform:
            return torch.unflatten(x, 0, (self.num_segments, self.num_steps))[:, step]
        return x.index_select(0, self._rows[step][:count])

    def target(self, x: Tensor, step: int, count: int) -> Tensor:
        """Where to compute the rows that `put` then stores in x."""
        if self.uniform:
            return self.take(x, step)
        return torch.empty((count, *x.shape[1:]), dtype=x.dtype, device=x.device)

    def put(self, x: Tensor, step: int, rows: Tensor) -> None:
        """Stores rows computed in `target(x, step, len(rows))`; those of equally long segments lie there already."""
        if not self.uniform:
            x.index_copy_(0, self._rows[step][: len(rows)], rows)

    def sort(self, x: Tensor) -> Tensor:
        """[K, ...] from stream order to the order of the steps."""
        return x if self.uniform else x.index_select(0, self._order)

    def unsort(self, x: Tensor) -> Tensor:
        """[K, ...] from the order of the steps to stream order."""
        return x if self.uniform else torch.empty_like(x).index_copy_(0, self._order, x)


@dataclass(frozen=True, eq=False)
class Chunks:
    """Chunk k is tokens offsets[k] : offsets[k+1] of the stream; the scan's state is zero before each chunk.

    offsets: [K+1] int64, offsets[0] = 0, strictly increasing. Caches its layouts, so make one object per batch.
    Raises ValueError otherwise.
    """

    offsets: Tensor

    def __post_init__(self) -> None:
        offsets = self.offsets
        if offsets.dim() != 1 or offsets.dtype != torch.int64 or len(offsets) < 2:
            raise ValueError(f"offsets must be [K+1] int64 with K >= 1; got {tuple(offsets.shape)} {offsets.dtype}")
        if int(offsets[0]) != 0 or int(offsets.diff().min()) < 1:
            raise ValueError("offsets must begin with 0 and increase strictly: no chunk is empty")
        object.__setattr__(self, "offsets", offsets.contiguous())  # kernels read them by address

    @cached_property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    @cached_property
    def _lengths(self) -> Tensor:
        return self.offsets.diff().cpu()

    @cached_property
    def _block_size(self) -> int:
        """Long chunks are cut into blocks of about the square root of their length."""
        longest = int(self._lengths.max())
        return longest if longest <= MAX_LOOP else 1 << (longest.bit_length() // 2)

    @cached_property
    def _blocks_per_chunk(self) -> Tensor:
        return (self._lengths + self._block_size - 1) // self._block_size

    @cached_property
    def _block_lengths(self) -> Tensor:
        lengths = self._lengths.new_full((int(self._blocks_per_chunk.sum()),), self._block_size)
        lengths[self._blocks_per_chunk.cumsum(0) - 1] = self._lengths - (self._blocks_per_chunk - 1) * self._block_size
        return lengths

    @cached_property
    def layout(self) -> Layout:
        """The tokens of each block; a block is a whole chunk unless chunks are long."""
        return Layout(self._block_lengths, self.offsets.device)

    @cached_property
    def block_layout(self) -> Layout | None:
        """The blocks of each chunk; None when every chunk is one block."""
        return None if self.whole else Layout(self._blocks_per_chunk, self.offsets.device)

    @cached_property
    def whole(self) -> bool:
        """Whether every chunk is one block."""
        return int(self._blocks_per_chunk.max()) == 1

    @cached_property
    def blocks(self) -> tuple[Tensor, Tensor, Tensor]:
        """Block b is tokens offsets[b] : offsets[b+1] of a chunk that begins at token begins[b], and chunk k is blocks
        members[k] : members[k+1]. offsets [B+1], begins [B], members [K+1], all int64.
        """
        device = self.offsets.device
        offsets, members = (
            torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(device)
            for lengths in (self._block_lengths, self._blocks_per_chunk)
        )
        return offsets, self.offsets[:-1].repeat_interleave(members.diff()), members
