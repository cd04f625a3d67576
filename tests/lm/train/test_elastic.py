"""One run over three starts: other ranks, other stages, and the launchers' own ways with signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults import free_port
from lm.run_file import RunFile, load_run_file
from lm.train import manifest
from lm.train.log import RunLog, read_metrics
from lm.train.loop import train

pytestmark = pytest.mark.launch

MakeRun = Callable[..., RunFile]
ROOT = Path(__file__).parents[3]
STEPS = 120
OVERRIDES = (
    f"train.steps={STEPS}",
    "train.checkpoint_every=null",
    "train.sample_tokens=0",
    "train.evaluate_tokens=512",
)


def curve(folder: Path) -> list[float]:
    records = read_metrics(folder / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return [record["loss"] for record in records]


def start(output: Path, run_path: Path, *command: str) -> subprocess.Popen[bytes]:
    """`train.py` under a launcher of this environment, in the output folder."""
    binaries = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    launcher, *options = command
    return subprocess.Popen(
        [
            binaries / launcher,
            *options,
            str(ROOT / "train.py"),
            str(run_path),
            f"train.output_dir={output}",
            *OVERRIDES,
        ],
        env=environment | {"OMP_NUM_THREADS": "1"},
    )


def processes(word: str) -> Iterator[int]:
    """Those with a word in their command line."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if word.encode() in (folder / "cmdline").read_bytes():
                    yield int(folder.name)
            except OSError:
                continue


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def written(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_three_starts_on_other_ranks_and_stages_are_one_curve(
    run_path: Path, make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, output = tmp_path / "alone", tmp_path / "out"
    train(load_run_file(run_path, [f"train.output_dir={alone}", *OVERRIDES]))

    # Two ranks, ZeRO-2, until deepspeed's own process is terminated, which tells nobody.
    options = (f"--master_port={free_port()}", "--num_accelerators=2")
    launcher = start(output, at_stage(run_path, tmp_path, 2), "deepspeed", *options)
    wait_until(lambda: written(output) >= 5)
    launcher.send_signal(signal.SIGTERM)
    launcher.wait(60)
    wait_until(lambda: not any(processes(str(output))), 60)
    (stopped,) = manifest.checkpoints(output / "checkpoints")
    first = manifest.step_of(stopped)
    assert 5 <= first == written(output) < STEPS - 5

    # One rank, ZeRO-0, for five steps.
    write = RunLog.write

    def signalled(log: RunLog, record: dict[str, Any]) -> None:
        write(log, record)
        if record["step"] == first + 5:
            os.kill(os.getpid(), signal.SIGUSR1)

    monkeypatch.setattr(RunLog, "write", signalled)
    with pytest.raises(SystemExit) as ended:
        train(make_run(f"train.output_dir={output}", *OVERRIDES))
    assert ended.value.code == 0

    # Two ranks, ZeRO-3, to the end.
    launcher = start(output, at_stage(run_path, tmp_path, 3), "torchrun", "--standalone", "--nproc_per_node=2")
    assert launcher.wait(300) == 0
    compared = first + 25  # the whole curve is longer only so that the signal comes in time: last bits grow with steps
    assert curve(output)[:compared] == pytest.approx(curve(alone)[:compared], abs=1e-5)


def at_stage(run_path: Path, folder: Path, stage: int) -> Path:
    """The run file at another ZeRO stage, in which parameters as small as these are sharded."""
    path = folder / f"stage-{stage}.yaml"
    zero = {2: "", 3: ", zero_optimization: {stage3_param_persistence_threshold: 0}"}[stage]
    path.write_text(f"{run_path.read_text()}deepspeed: {{zero_stage: {stage}{zero}}}\n")
    return path
