"""Drawing in characters: Braille dots, two across and four down in each cell, or one star where those are unknown."""

from __future__ import annotations

from rich.text import Text

BLANK = 0x2800
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Braille's bits by row and column of a cell."""


class Canvas:
    """`width` x `height` cells; dots are counted from the upper left corner."""

    def __init__(self, width: int, height: int, ascii_only: bool = False) -> None:
        self._across, self._down = (1, 1) if ascii_only else (2, 4)
        self.dots_across, self.dots_down = width * self._across, height * self._down
        self._bits = [[0] * width for _ in range(height)]
        self._styles = [[""] * width for _ in range(height)]
        self._ascii_only = ascii_only

    def dot(self, x: int, y: int, style: str) -> None:
        """Sets one dot, if it lies inside; the cell takes the style of its newest one."""
        if 0 <= x < self.dots_across and 0 <= y < self.dots_down:
            row, column = y // self._down, x // self._across
            self._bits[row][column] |= DOTS[y % self._down][x % self._across]
            self._styles[row][column] = style

    def line(self, start: tuple[int, int], end: tuple[int, int], style: str) -> None:
        """All dots between two, both included, without gaps."""
        steps = max(abs(end[0] - start[0]), abs(end[1] - start[1]), 1)
        for step in range(steps + 1):
            x, y = (round(a + (b - a) * step / steps) for a, b in zip(start, end, strict=True))
            self.dot(x, y, style)

    def rows(self) -> list[Text]:
        """What was drawn, line by line."""
        lines = []
        for bits, styles in zip(self._bits, self._styles, strict=True):
            line = Text()
            for bit, style in zip(bits, styles, strict=True):
                line.append(self._sign(bit), style)
            lines.append(line)
        return lines

    def _sign(self, bits: int) -> str:
        if not bits:
            return " "
        return "*" if self._ascii_only else chr(BLANK + bits)
