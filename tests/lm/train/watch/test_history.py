"""Reading a run that is being written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.errors import UserError
from lm.train.file_names import METRICS_FILE
from lm.train.log import MetricsFile
from lm.train.watch.history import History


def line(step: int, **more: object) -> bytes:
    return json.dumps({"step": step, "loss": 1 / step, "step_seconds": 2.0} | more).encode() + b"\n"


def run_in(folder: Path, content: bytes = b"", steps: int = 10) -> History:
    folder.mkdir(exist_ok=True)
    (folder / METRICS_FILE).write_bytes(content)
    (folder / "run.yaml").write_text(f"train: {{steps: {steps}}}\n")
    return History(folder)


@given(cuts=st.lists(st.integers(0, 400), max_size=8))
@settings(deadline=None, max_examples=40)
def test_read_in_any_pieces_it_is_the_whole_file(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    content = b"".join(line(step) for step in range(1, 9))
    folder = tmp_path_factory.mktemp("run")
    history = run_in(folder)
    for cut in [*sorted(cuts), len(content)]:
        with (folder / METRICS_FILE).open("ab") as file:
            file.write(content[file.tell() : cut])
        history.refresh()
        whole = content[:cut].count(b"\n")
        assert history.series.get("loss", []) == [(step, 1 / step) for step in range(1, whole + 1)]
    assert not history.refresh()
    assert (history.step, history.steps, history.seconds_left) == (8, 10, 4.0)


def test_steps_that_a_resumed_run_takes_back_are_gone(tmp_path: Path) -> None:
    history = run_in(tmp_path / "run", b"".join(line(step, spike=step) for step in range(1, 8)))
    history.refresh()
    metrics = MetricsFile(tmp_path / "run" / METRICS_FILE)
    metrics.truncate_after(4)
    metrics.append({"step": 5, "loss": 0.5})
    metrics.close()
    assert history.refresh()
    assert [step for step, _ in history.series["loss"]] == [1, 2, 3, 4, 5]
    assert history.newest["spike"] == 4


def test_what_is_no_figure_is_left_out_and_what_is_not_finite_is_a_gap(tmp_path: Path) -> None:
    history = run_in(tmp_path / "run", line(1, name="x", many=[1], nothing=None))
    history.refresh()
    assert set(history.series) == {"loss", "step_seconds", "nothing"}
    assert history.series["nothing"] == [(1, None)]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    history = run_in(tmp_path / "run", line(1) + b"oops\n" + line(3))
    with pytest.raises(UserError, match="line 2 is not a record"):
        history.refresh()


def test_a_folder_without_a_run_is_a_mistake_that_names_runs_below(tmp_path: Path) -> None:
    run_in(tmp_path / "mine")
    with pytest.raises(UserError, match=r"no run here .*Runs below it: .*mine"):
        History(tmp_path)
    with pytest.raises(UserError, match="no run here"):
        History(tmp_path / "nowhere")


def test_the_state_is_what_a_person_wants_to_know(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    history = run_in(folder)
    assert history.state == "waiting for the first step"
    (folder / METRICS_FILE).write_bytes(line(1))
    history.refresh()
    assert history.state == "running"
    os.utime(folder / METRICS_FILE, (1, 1))
    assert history.state.startswith("silent for")
    (folder / METRICS_FILE).write_bytes(line(1) + line(10))
    history.refresh()
    assert history.state == "finishing"
    (folder / "complete.json").touch()
    assert history.state == "finished"
