"""What a tokenized text amounts to, in numbers for the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm.data.manifest import Manifest
from lm.data.store import TokenStore


@dataclass(frozen=True)
class Statistics:
    """Counts over one or more stores.

    tokens: bos and eos included. targets: of these, how many are predicted. bytes: UTF-8 that the predicted ones spell.
    """

    documents: int
    tokens: int
    targets: int
    bytes: int

    @classmethod
    def of(cls, stores: Sequence[TokenStore]) -> Statistics:
        """The sums over `stores`."""
        return cls(
            documents=sum(store.num_documents for store in stores),
            tokens=sum(store.num_tokens for store in stores),
            targets=sum(store.num_targets for store in stores),
            bytes=sum(store.num_bytes for store in stores),
        )

    @classmethod
    def of_training(cls, manifest: Manifest) -> Statistics:
        """Those of the documents that are trained on."""
        return cls(manifest.documents, manifest.tokens, manifest.targets, manifest.bytes)

    @property
    def bytes_per_token(self) -> float:
        """Bytes of predicted text per predicted token, one eos for each document not counted."""
        return self.bytes / max(1, self.targets - self.documents)


def unigram_bits_per_byte(train: Sequence[np.ndarray], held_out: Sequence[TokenStore]) -> float:
    """Bits per byte that the held-out targets cost under the frequencies of training's targets.

    train: [V], how often each token is predicted, of one or more sources. This is what a model that ignores all context
    reaches. Frequencies get one added to each count, so that a token never seen in training has a price.
    """
    seen = np.sum(train, axis=0) + 1
    wanted = np.sum([store.counts for store in held_out], axis=0)
    bits = -wanted @ np.log2(seen / seen.sum())
    return float(bits / sum(store.num_bytes for store in held_out))
