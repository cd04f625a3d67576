import io
import re

import pytest
from rich.console import Console

from lm.train.progress import Progress


def console(*, terminal: bool, width: int = 100, encoding: str = "utf-8") -> tuple[Console, io.TextIOWrapper]:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    return Console(file=stream, force_terminal=terminal, width=width, color_system=None), stream


def shown(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode(stream.encoding)


def run(progress: Progress, steps: int = 6) -> None:
    with progress.phase("preparing data", total=10) as phase:
        phase.advance(4)
        phase.update(10, note="9.8M tokens [of text]")
    with progress.training(steps, step=2) as bar:
        for step in range(3, steps + 1):
            bar.update({"step": step, "loss": 10 - step, "tokens_per_second": 12345.0, "mfu": 0.412})
        with progress.phase("evaluating"):
            bar.update(
                {"step": steps, "validation_loss": 3.5, "validation_accuracy": 0.25, "validation_bits_per_byte": 1.25}
            )


def test_plain_lines_where_there_is_no_terminal() -> None:
    screen, stream = console(terminal=False, width=20)
    run(Progress(console=screen, every=2))
    lines = shown(stream).splitlines()
    assert "\x1b" not in shown(stream)
    assert lines[0] == "preparing data ..."
    assert re.fullmatch(r"✓ preparing data  9\.8M tokens \[of text\]  \d\.\d s", lines[1])
    assert re.fullmatch(r"step 4/6  loss 6\.0000  12\.3K tok/s  MFU 41\.2%  \d\.\d s left", lines[2])
    assert lines[3:5] == [
        "step 6/6  loss 4.0000  12.3K tok/s  MFU 41.2%",
        "step 6  held-out loss 3.5000  accuracy 25.00%  1.2500 bits per byte",
    ]
    assert lines[5].startswith("✓ training, 6 of 6 steps  loss 4.0000")
    assert len(lines) == 6


def test_layers_that_learn_apart_are_told_by_the_nearest_and_the_farthest() -> None:
    screen, stream = console(terminal=False, width=80)
    with Progress(console=screen).training(1) as bar:
        bar.update({"step": 1, "loss": 0.5, "layer_03": 0.25, "layer_05": 0.75})
    assert shown(stream).splitlines()[0] == "step 1/1  loss 0.5000  layers 0.250 to 0.750"


def test_a_live_bar_on_a_terminal_with_every_figure() -> None:
    screen, stream = console(terminal=True)
    progress = Progress(console=screen)
    with progress.training(400) as bar:
        for step in (1, 2):
            bar.update({"step": step, "loss": 3.25, "tokens_per_second": 12345.0, "mfu": 0.412})
        progress._live.refresh()
        live = shown(stream)
    for part in ("training", "2/400", "loss 3.2500", "12.3K tok/s", "MFU 41.2%", "left"):
        assert part in live
    # The bar itself is wiped away at the end; one line stays.
    *_, last = shown(stream).removesuffix("\n").split("\x1b[?25h")
    assert re.fullmatch(r"(\x1b\[1A\x1b\[2K)*✓ training, 2 of 400 steps  loss 3\.2500  .*", last.strip().lstrip("\r"))


def test_other_ranks_are_mute(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(rank=1)
    run(progress)
    progress.say("nothing")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_without_unicode_is_served() -> None:
    for terminal in (False, True):
        screen, stream = console(terminal=terminal, encoding="ascii")
        run(Progress(console=screen))
        assert "* training, 6 of 6 steps" in shown(stream)


def test_a_failure_ends_the_display_and_is_not_reported_as_done() -> None:
    screen, stream = console(terminal=True)
    progress = Progress(console=screen)
    with pytest.raises(RuntimeError, match="disk"), progress.training(10), progress.phase("evaluating"):
        raise RuntimeError("disk full")
    assert "✓" not in shown(stream)
    assert not progress._live.live.is_started


def test_the_total_of_a_phase_may_come_and_go() -> None:
    screen, stream = console(terminal=True)
    progress = Progress(console=screen)
    with progress.phase("preparing") as phase:
        for completed, total, expected in (
            (5, 10, "5/10"),
            (0, None, ""),
            (700, 1000, "700/1K"),
            (1000, 1000, "1K/1K"),
        ):
            phase.update(completed, total=total, note=f"stage {total}")
            before = len(shown(stream))
            progress._live.refresh()
            drawn = shown(stream)[before:]
            assert f"stage {total}" in drawn
            assert expected in drawn
            assert ("/" in drawn) == bool(expected)
    assert "✓ preparing  stage 1000" in shown(stream)
