"""A chart of a report as a file of its own."""

from __future__ import annotations

from lm.train.report.style import STYLE


def svg_file(figure: str) -> str:
    """The SVG of a `<figure>` with the report's style sheet in it, on a card of its colour; the caption stays behind.

    Raises ValueError for a figure without a chart.
    """
    start, end = figure.find("<svg "), figure.find("</svg>")
    if start < 0:
        raise ValueError("the figure holds no chart")
    tag, _, drawing = figure[start:end].partition(">")
    style = f"<style>{STYLE}svg {{ background: var(--card); font-family: system-ui, sans-serif; }}</style>"
    return f'{tag} xmlns="http://www.w3.org/2000/svg">{style}{drawing}</svg>\n'
