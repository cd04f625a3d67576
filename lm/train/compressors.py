"""What held-out text costs without a neural network: the figures to set a model's bits per byte beside."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Iterable

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
