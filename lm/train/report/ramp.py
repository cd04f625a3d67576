"""A ramp of colours for values without a sign: dark for little, bright for much, equal steps for the eye."""

from __future__ import annotations

# Matplotlib's viridis at equal distances (S. van der Walt and N. Smith; CC0).
_STOPS = ("440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725")


def colour(share: float) -> str:
    """`#rrggbb` of a share in [0, 1]; what lies outside gets the nearest end's."""
    place = min(max(share, 0.0), 1.0) * (len(_STOPS) - 1)
    lower = min(int(place), len(_STOPS) - 2)
    weight = place - lower
    mixed = (
        round((1 - weight) * int(_STOPS[lower][at : at + 2], 16) + weight * int(_STOPS[lower + 1][at : at + 2], 16))
        for at in (0, 2, 4)
    )
    return "#" + "".join(f"{part:02x}" for part in mixed)


def gradient(stops: int = 10) -> str:
    """The ramp as a CSS gradient from left to right."""
    return f"linear-gradient(to right, {', '.join(colour(stop / (stops - 1)) for stop in range(stops))})"
