"""What a tokenized text amounts to, in numbers for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm.data.store import TokenStore


@dataclass(frozen=True)
class Statistics:
    """Counts over one or more stores; `tokens` includes bos and eos, `bytes` is UTF-8."""

    documents: int
    tokens: int
    bytes: int

    @classmethod
    def of(cls, stores: Sequence[TokenStore]) -> Statistics:
        """The sums over `stores`."""
        return cls(
            documents=sum(store.num_documents for store in stores),
            tokens=sum(store.num_tokens for store in stores),
            bytes=sum(store.num_bytes for store in stores),
        )

    @property
    def bytes_per_token(self) -> float:
        """Bytes of text per token of text, bos and eos not counted."""
        return self.bytes / max(1, self.tokens - 2 * self.documents)


def unigram_bits_per_byte(train: Sequence[TokenStore], held_out: Sequence[TokenStore], bos_id: int) -> float:
    """Bits per byte that the held-out targets cost under the training text's token frequencies.

    This is what a model that ignores all context reaches. Frequencies get one added to each count, so that a token
    never seen in training has a price; bos is no target and is left out of both.
    """
    seen = np.sum([store.counts for store in train], axis=0) + 1
    wanted = np.sum([store.counts for store in held_out], axis=0)
    # Every document begins with one bos; more occurrences than that are the same id used as eos, which is a target.
    seen[bos_id] -= sum(store.num_documents for store in train)
    wanted[bos_id] -= sum(store.num_documents for store in held_out)
    bits = -wanted @ np.log2(seen / seen.sum())
    return float(bits / sum(store.num_bytes for store in held_out))
