"""What held-out text costs without a neural network: the figures to set a model's bits per byte beside."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

GZIP_CONTAINER = 16 + zlib.MAX_WBITS


def compressed_bits_per_byte(documents: Iterable[bytes]) -> dict[str, float]:
    """Bits per byte of the concatenated documents under `gzip -9` and `xz -9`, by those names; streams its input.

    Raises ValueError where there is not one byte.
    """
    gzip = zlib.compressobj(9, zlib.DEFLATED, GZIP_CONTAINER)
    xz = lzma.LZMACompressor(preset=9)
    size = gzip_size = xz_size = 0
    for document in documents:
        size += len(document)
        gzip_size += len(gzip.compress(document))
        xz_size += len(xz.compress(document))
    if not size:
        raise ValueError("nothing to compress")
    gzip_size += len(gzip.flush())
    xz_size += len(xz.flush())
    return {"gzip -9": 8 * gzip_size / size, "xz -9": 8 * xz_size / size}


def unigram_bits_per_byte(token_counts: NDArray[np.int64], num_bytes: int) -> float:
    """Bits per byte of a text under the best model that ignores order: its own token frequencies.

    token_counts: [V], how often each token is a target in the text. num_bytes: UTF-8 bytes of the text.
    """
    counts = token_counts[token_counts > 0].astype(np.float64)
    return float(-(counts * np.log2(counts / counts.sum())).sum() / num_bytes)
