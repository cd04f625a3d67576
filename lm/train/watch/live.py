"""Following a run on a terminal, key by key and step by step, until it is left."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import sys
import termios
import tty
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from lm.train.watch.history import History
from lm.train.watch.pages import pages, screen

SECONDS = 0.25
"""Between looks at the keyboard, the window's size and the run."""
FORWARD, BACKWARD = ("\t", "l", "\x1b[C"), ("h", "\x1b[D", "\x1b[Z")
SNAPSHOT = (100, 34)
"""Columns and lines of each page where there is no terminal."""


def watch(root: Path, console: Console | None = None) -> None:
    """Follows the run in `root` until q or Ctrl-C; without a terminal, prints each page once.

    Raises UserError where there is no run.
    """
    history = History(root)
    history.refresh()
    console = console or Console()
    if not console.is_terminal:
        _print(history, console)
        return
    with contextlib.suppress(KeyboardInterrupt), _keyboard() as keyboard:
        try:
            _follow(history, console, keyboard)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            os._exit(0)  # the terminal was closed: there is nothing to put back, and nobody to tell


def _print(history: History, console: Console) -> None:
    names = pages(history)
    for page in range(max(1, len(names))):
        for line in screen(history, page, *SNAPSHOT, console.options.ascii_only, cut=False):
            console.print(line, soft_wrap=True, highlight=False)


def _follow(history: History, console: Console, keyboard: int | None) -> None:
    page = 0
    shown = None
    with Live(console=console, screen=True, auto_refresh=False, transient=True) as live:
        while True:
            history.refresh()
            # What the screen depends on: the run, the page, the window, and how long the run has been silent.
            state = (history.step, len(history.series), page, console.size, history.state)
            if state != shown:
                shown = state
                lines = screen(history, page, *console.size, console.options.ascii_only)
                live.update(Group(*(_one_line(line) for line in lines)), refresh=True)
            key = _key(keyboard)
            if key == "q":
                return
            count = max(1, len(pages(history)))
            if key in FORWARD:
                page = (min(page, count - 1) + 1) % count
            elif key in BACKWARD:
                page = (min(page, count - 1) - 1) % count
            elif key.isdecimal() and 1 <= int(key) <= count:
                page = int(key) - 1


def _one_line(line: Text) -> Text:
    line.no_wrap = True
    line.overflow = "crop"
    return line


def _key(keyboard: int | None) -> str:
    """The key that was pressed within SECONDS, or nothing; arrows as the terminal writes them.

    Raises OSError (EIO) where the terminal was closed.
    """
    ready, _, _ = select.select([] if keyboard is None else [keyboard], [], [], SECONDS)
    if not ready:
        return ""
    pressed = os.read(ready[0], 8)
    if not pressed:  # as some systems say it
        raise OSError(errno.EIO, "the terminal was closed")
    return pressed.decode(errors="ignore")


@contextlib.contextmanager
def _keyboard() -> Iterator[int | None]:
    """Standard input, key by key and without echo; None where it is no terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    handle = sys.stdin.fileno()
    before = termios.tcgetattr(handle)
    try:
        tty.setcbreak(handle)
        yield handle
    finally:
        termios.tcsetattr(handle, termios.TCSADRAIN, before)
