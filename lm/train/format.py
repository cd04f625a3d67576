"""Numbers as people read them, for the terminal and the report."""

from __future__ import annotations

import math


def short_number(value: float, digits: int = 3) -> str:
    """`12345` -> `12.3K`, with `digits` significant digits and the suffixes K, M, B, T (powers of 1000)."""
    if not math.isfinite(value):
        return str(value)
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        # Values that would round up to 1000 of one unit are written in the next.
        if abs(value) >= scale * (1 - 0.5 * 10.0**-digits):
            return _significant(value / scale, digits) + suffix
    return _significant(value, digits)


def counted(count: int, what: str) -> str:
    """`1 document`, `2,000 documents`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _significant(value: float, digits: int) -> str:
    if value == int(value) and abs(value) < 1000:
        return str(int(value))
    whole = len(str(int(abs(value)))) if abs(value) >= 1 else 1
    return f"{value:.{max(digits - whole, 0)}f}"


def duration(seconds: float) -> str:
    """`3.2 s` below ten seconds, then `m:ss` and `h:mm:ss`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def byte_size(count: float) -> str:
    """`1536` -> `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"
