"""The running state of a chunk that is cut by the border of a rank's share of the stream.

A recurrence is linear in the state it starts from: what it gives from zero, plus that state times the product of the
gates so far. So every rank scans its share from zero, hands on the state at its end and, where its whole share lies
within one chunk, the product of its gates; and puts the state that enters together from those of the ranks before, back
to the one where the chunk begins. Ranks need not wait for one another, however many a chunk reaches over.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import torch
from torch import Tensor

from lm.model.documents import Documents


def add_carried(states: Sequence[Tensor], gate: Tensor, chunk_size: int, documents: Documents) -> tuple[Tensor, ...]:
    """States [n, heads, width] of a share, scanned from zero with gate [n, heads, width], as the whole stream's scan
    has them. Collective."""
    share = documents.share
    assert share is not None
    lead = min(-int(documents.past[0]) % chunk_size, int(documents.lengths[0]))
    decay = gate[:lead].cumprod(0)
    product = decay[-1] if lead == documents.num_tokens else torch.zeros_like(states[0][0])
    ends = torch.stack((product, *(state[-1] for state in states)))[None]
    first = opening_ranks(share.stream, share.bounds, chunk_size)
    (known,) = share.fetch((ends,), first, range(len(share.bounds)))
    # From no rows rather than from nothing, so that gradients find their way back to the exchange on every rank.
    entering = known[:0, 1:].sum(0)
    for product, *end in known[:-1]:
        entering = torch.stack(tuple(end)) + product * entering
    return tuple(
        torch.cat((state[:lead] + decay * carried, state[lead:]))
        for state, carried in zip(states, entering, strict=True)
    )


def opening_ranks(stream: Documents, bounds: Sequence[int], chunk_size: int) -> list[int]:
    """For each rank the one where the chunk begins in which its own first token lies."""

    def build() -> list[int]:
        offsets = (stream.position[list(bounds[:-1])] % chunk_size).tolist()
        return [bisect_right(bounds, begin - offset) - 1 for begin, offset in zip(bounds, offsets, strict=False)]

    return stream.memo(("opening ranks", chunk_size), build)
