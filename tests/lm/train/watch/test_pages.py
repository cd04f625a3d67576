"""The screen of `braid watch`: it fits every window, and shows where a curve goes."""

from __future__ import annotations

import json
import os
import pty
import selectors
import signal
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lm.errors import UserError
from lm.train.file_names import METRICS_FILE
from lm.train.report.scale import Axis
from lm.train.watch.canvas import BLANK, DOTS, Canvas
from lm.train.watch.chart import Curve, layer_map, line_chart
from lm.train.watch.history import History
from lm.train.watch.live import watch
from lm.train.watch.pages import pages, screen

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 steps that wrote everything there is."""
    folder = tmp_path_factory.mktemp("runs") / "my-run"
    folder.mkdir()
    records = []
    for step in range(1, 41):
        record = {"step": step, "loss": 5 - step / 20, "grad_norm": 0.5, "learning_rate": 1e-3, "tokens": step * 1000}
        record |= {"tokens_per_second": 1234.0, "mfu": 0.375, "step_seconds": 2.0, "data_seconds": 0.1}
        record |= {"peak_memory": 3 << 29}
        if step % 10 == 0:
            record |= {"validation_loss": 4.5, "eval/passkey@512": 0.5, "recall/1024": 0.25, "recall/2048/nll": 7.0}
            record |= {
                f"layers/entropy/{layer:02d}{heads}": 1.0 + layer for layer in range(30) for heads in ("/0-1", "/2-3")
            }
            record |= {f"position_loss/{2**octave}": 6.0 - octave / 4 for octave in range(12)}
        records.append(record)
    (folder / METRICS_FILE).write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "run.yaml").write_text("train: {steps: 80}\n")
    return folder


def loaded(folder: Path) -> History:
    history = History(folder)
    history.refresh()
    return history


@given(width=st.integers(1, 250), height=st.integers(1, 80), page=st.integers(0, 5), ascii_only=st.booleans())
@settings(deadline=None, max_examples=60)
def test_every_window_is_filled_and_none_is_left(
    folder: Path, width: int, height: int, page: int, ascii_only: bool
) -> None:
    lines = screen(loaded(folder), page, width, height, ascii_only)
    assert len(lines) <= height
    assert max(line.cell_len for line in lines) <= width
    if ascii_only:
        assert "".join(line.plain for line in lines).replace("│", "").replace("…", "").isascii()


def test_pages_show_what_a_run_has(folder: Path, tmp_path: Path) -> None:
    history = loaded(folder)
    assert pages(history) == ["Training", "Speed", "Layers", "Context"]
    said = "\n".join(line.plain for page in range(4) for line in screen(history, page, 120, 40))
    for words in (
        "my-run",
        "running",
        "40 of 80 steps, 50%",
        "1:20 left",
        "loss 3.0000",
        "held-out 4.5000",
        "MFU 37.5%",
    ):
        assert words in said, words
    for words in ("Gradient norm", "Seconds of a step", "29 heads 2-3", "passkey@512", "2,048", "q: quit"):
        assert words in said, words
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "lock").touch()
    assert "waiting for the first step" in screen(loaded(empty), 0, 80, 20)[0].plain


@given(points=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 18)), min_size=1, max_size=6))
def test_a_canvas_sets_the_dots_it_is_told(points: list[tuple[int, int]]) -> None:
    canvas = Canvas(12, 4)
    for x, y in points:
        canvas.dot(x, y, "red")
    signs = [row.plain for row in canvas.rows()]
    for x in range(24):
        for y in range(16):
            sign = signs[y // 4][x // 2]
            bits = 0 if sign == " " else ord(sign) - BLANK
            assert bool(bits & DOTS[y % 4][x % 2]) == ((x, y) in points)


def test_a_falling_curve_falls_and_reaches_both_ends() -> None:
    curve = Curve("loss", [(step, 10.0 - step) for step in range(11)], "blue")
    drawn = [line.plain for line in line_chart("Loss", [curve], Axis(""), 40, 12)]
    assert drawn[0].startswith("Loss")
    assert drawn[1][8] not in " "  # the highest value stands first
    assert drawn[10][39] not in " "  # and the lowest last
    assert drawn[1][39] == drawn[10][8] == " " or len(drawn[1]) < 40
    assert drawn[11].split() == ["0", "10"]


def test_a_map_shows_first_and_last_layer_where_not_all_fit() -> None:
    rows = [(f"layer {number}", [float(number), None]) for number in range(20)]
    drawn = "\n".join(line.plain for line in layer_map("title", rows, Axis(""), 60, 6))
    assert drawn.count("layer") == 5
    assert "layer 0 " in drawn
    assert "layer 19 " in drawn


def test_without_a_terminal_every_page_is_printed_once(folder: Path) -> None:
    console = Console(width=100, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    watch(folder, console)
    said = console.export_text()
    assert said.count("my-run") == 4
    assert said.count("grad norm 0.5  memory 1.5 GiB") == 4  # beyond the hundredth column
    with pytest.raises(UserError, match="no run here"):
        watch(folder.parent / "other", console)


class Terminal:
    """`braid watch` in a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        self.master, slave = pty.openpty()
        ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        environment = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "PYTHONUTF8": "1"}
        for size in ("COLUMNS", "LINES"):  # readline, once imported, says them: they would hide the window's own size
            environment.pop(size, None)
        command = [sys.executable, "-m", "lm", "watch", str(folder)]
        # A suite in the background ignores Ctrl-C, and what it starts would inherit that.
        asked = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
        signal.signal(signal.SIGINT, asked)
        self.slave = slave
        self.output = selectors.DefaultSelector()  # select() knows no descriptor above 1023
        self.output.register(self.master, selectors.EVENT_READ)

    def read_until(self, words: str, seconds: float = 60.0) -> str:
        said = ""
        end = time.monotonic() + seconds
        while words not in said and time.monotonic() < end:
            if self.output.select(0.2):
                said += os.read(self.master, 65536).decode(errors="replace")
        assert words in said, said[-2000:]
        return said

    def press(self, keys: bytes) -> None:
        os.write(self.master, keys)


@pytest.mark.launch
@pytest.mark.parametrize(("leave", "step", "loss"), [("q", 41, "2.2222"), ("ctrl-c", 42, "1.1111")])
def test_on_a_terminal_it_turns_pages_follows_resizes_and_leaves_cleanly(
    folder: Path, leave: str, step: int, loss: str
) -> None:
    terminal = Terminal(folder)
    before = termios.tcgetattr(terminal.slave)
    terminal.read_until("Gradient norm")
    terminal.press("\u00b2".encode())  # a digit that is no number
    time.sleep(0.3)
    terminal.press(b"3")
    terminal.read_until("Attention entropy")
    terminal.press(b"\t")
    terminal.read_until("Loss by position")
    ioctl(terminal.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    terminal.read_until("Loss by position")
    with (folder / METRICS_FILE).open("a") as file:
        file.write(f'{{"step": {step}, "loss": {loss}}}\n')
    terminal.read_until(loss)
    if leave == "q":
        terminal.press(b"q")
    else:
        terminal.process.send_signal(signal.SIGINT)
    terminal.read_until("\x1b[?1049l")  # the screen that was there before is back
    assert terminal.process.wait(60) == 0
    assert termios.tcgetattr(terminal.slave) == before


@pytest.mark.launch
def test_it_ends_with_its_terminal(folder: Path) -> None:
    terminal = Terminal(folder)
    terminal.read_until("Gradient norm")
    os.close(terminal.slave)
    os.close(terminal.master)
    assert terminal.process.wait(30) == 0


@pytest.mark.launch
def test_it_starts_without_torch() -> None:
    program = "import sys, lm.train.watch.live; sys.exit('torch' in sys.modules or 'wandb' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == 0
