"""Hashes: short names for what something was made from, and fair coins tossed by content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def digest(value: Any) -> str:
    """16 hex digits that name a JSON-like value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def content_digest(parts: Iterable[bytes]) -> str:
    """16 hex digits that name a sequence of byte strings."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "little"))
        whole.update(part)
    return whole.hexdigest()[:16]


def unit_hash(content: bytes, purpose: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but the arguments: the same content gets the same number anywhere."""
    key = f"{purpose}:{seed}".encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=key).digest(), "little") / 2**64


def wide_hash(content: bytes) -> bytes:
    """16 bytes that differ for different contents, as far as there are fewer than billions of billions of them."""
    return hashlib.blake2b(content, digest_size=16).digest()
