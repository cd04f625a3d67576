"""The screen of `braid watch` as lines of text: what the run does, one section of the dashboard, and the keys."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from lm.train.dashboard import SECTIONS, Panel
from lm.train.format import byte_size, duration, short_number
from lm.train.report.scale import Axis
from lm.train.report.style import DARK_COLOURS
from lm.train.watch.chart import Curve, layer_map, line_chart
from lm.train.watch.history import History

STYLES = DARK_COLOURS
GAP = 3
NARROWEST, LOWEST = 44, 7
"""Columns and lines below which a chart says nothing."""
STATE_STYLES = {"running": "green", "finished": "green", "finishing": "green"}


def pages(history: History) -> list[str]:
    """The sections that the run has figures for."""
    return [name for name, panels in SECTIONS.items() if _filled(history, panels)]


def screen(
    history: History, page: int, width: int, height: int, ascii_only: bool = False, cut: bool = True
) -> list[Text]:
    """`height` lines of `width` columns, beyond which nothing goes if `cut`; `page` is an index into `pages`."""
    names = pages(history)
    lines = _header(history, width, ascii_only)
    footer = _footer(names, page, width)
    room = height - len(lines) - 2
    body: list[Text] = []
    if names and room >= LOWEST:
        panels = _filled(history, SECTIONS[names[min(page, len(names) - 1)]])
        body = _grid(history, panels, width, room, ascii_only)
    body += [Text("")] * (room - len(body))
    if cut:  # what a narrow window has no room for
        for line in lines:
            line.truncate(width, overflow="ellipsis")
        for line in (*body, footer):
            line.truncate(width)
    return [*lines, Text(""), *body, footer][:height]


def _filled(history: History, panels: Sequence[Panel]) -> list[Panel]:
    return [panel for panel in panels if panel.chosen(history.series)]


def _header(history: History, width: int, ascii_only: bool) -> list[Text]:
    step, steps, state = history.step, history.steps, history.state
    title = Text.assemble((history.name, "bold"), "  ", (state, STATE_STYLES.get(state, "yellow")))
    if steps:
        done = min(step / steps, 1.0)
        title.append(f"  {step:,} of {steps:,} steps, {done:.0%}", "dim")
        if (left := history.seconds_left) and step < steps:
            title.append(f", {duration(left)} left", "dim")
        filled = round(done * width)
        bar = Text.assemble(
            (("#" if ascii_only else "━") * filled, STYLES[0]),
            (("-" if ascii_only else "─") * (width - filled), "dim"),
        )
    else:
        bar = Text(("-" if ascii_only else "─") * width, "dim")
    return [title, bar, Text("  ".join(_figures(history)))]


def _figures(history: History) -> list[str]:
    newest = history.newest
    found = []
    if newest.get("loss") is not None:
        found.append(f"loss {newest['loss']:.4f}")
    if newest.get("validation_loss") is not None:
        found.append(f"held-out {newest['validation_loss']:.4f}")
    if newest.get("tokens") is not None:
        found.append(f"{short_number(newest['tokens'])} tokens")
    if newest.get("tokens_per_second") is not None:
        found.append(f"{short_number(newest['tokens_per_second'])} tok/s")
    if newest.get("mfu") is not None:
        found.append(f"MFU {newest['mfu']:.1%}")
    if newest.get("learning_rate") is not None:
        found.append(f"lr {newest['learning_rate']:.3g}")
    if newest.get("grad_norm") is not None:
        found.append(f"grad norm {newest['grad_norm']:.3g}")
    if newest.get("peak_memory") is not None:
        found.append(f"memory {byte_size(newest['peak_memory'])}")
    if newest.get("skipped"):
        found.append(f"{newest['skipped']} steps skipped")
    return found


def _footer(names: Sequence[str], page: int, width: int) -> Text:
    line = Text()
    for index, name in enumerate(names):
        line.append(f" {index + 1} {name} ", "reverse" if index == min(page, len(names) - 1) else "dim")
    keys = "  tab: next  q: quit "
    if line.cell_len + len(keys) <= width:
        line.append(keys.rjust(width - line.cell_len), "dim")
    return line


def _grid(history: History, panels: Sequence[Panel], width: int, height: int, ascii_only: bool) -> list[Text]:
    """The panels side by side and below each other; those that there is no room for are left out."""
    columns = max(1, min(len(panels), 3 if width >= 3 * (NARROWEST + 16) else 2, width // NARROWEST))
    rows = max(1, min(-(-len(panels) // columns), height // LOWEST))
    each = (width - GAP * (columns - 1)) // columns
    tall = height // rows
    lines: list[Text] = []
    for row in range(rows):
        chosen = panels[row * columns : (row + 1) * columns]
        drawn = [_panel(history, panel, each, tall - 1, ascii_only) for panel in chosen]
        lines += [_beside(parts, each) for parts in zip(*drawn, strict=True)]
        lines.append(Text(""))
    return lines


def _beside(parts: Sequence[Text], width: int) -> Text:
    line = Text()
    for part in parts[:-1]:
        line.append_text(part).append(" " * (width + GAP - part.cell_len))
    return line.append_text(parts[-1])


def _panel(history: History, panel: Panel, width: int, height: int, ascii_only: bool) -> list[Text]:
    keys = panel.chosen(history.series)
    axis = Axis("", log=10 if panel.log else None, from_zero=panel.from_zero)
    if keys[0].startswith("layers/"):
        rows = [(_layer_name(key), [value for _, value in history.series[key]]) for key in sorted(keys)]
        return layer_map(panel.title, rows, axis, width, height, ascii_only)
    if "/" in keys[0]:
        keys = sorted(keys, key=_length_in)
    if len(keys) > len(STYLES):
        rows = [(_curve_name(key), [value for _, value in history.series[key]]) for key in keys]
        return layer_map(panel.title, rows, axis, width, height, ascii_only)
    alone = len(keys) == 1 and "/" not in keys[0]  # its panel's title says what it is
    curves = [
        Curve("" if alone else _curve_name(key), history.series[key], STYLES[number]) for number, key in enumerate(keys)
    ]
    return line_chart(panel.title, curves, axis, width, height, ascii_only)


def _layer_name(key: str) -> str:
    """`layers/entropy/03/0-1` -> `3 heads 0-1`."""
    _, _, layer, *heads = key.split("/")
    return f"{int(layer)}" + (f" heads {heads[0]}" if heads else "")


NAMES = {"loss": "training", "validation_loss": "held-out", "step_seconds": "step", "data_seconds": "data"}


def _curve_name(key: str) -> str:
    """`recall/1024/nll` -> `1,024`, `eval/passkey@512` -> `passkey@512`."""
    if key in NAMES:
        return NAMES[key]
    parts = key.removesuffix("/nll").split("/")
    return f"{int(parts[-1]):,}" if parts[-1].isdigit() else parts[-1]


def _length_in(key: str) -> tuple[str, int]:
    """Sorts lengths and positions by size, whatever stands before them."""
    name = key.removesuffix("/nll")
    digits = name[len(name.rstrip("0123456789")) :]
    return name.removesuffix(digits), int(digits or 0)
