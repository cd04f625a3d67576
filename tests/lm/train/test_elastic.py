"""One run over four starts: other ranks, nodes and stages, shared rows, and the launchers' own ways with signals."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
    "optimizer.schedule={kind: constant}",  # which does not depend on train.steps
)


def start(output: Path, run_path: Path, *command: str, changes: Sequence[str] = ()) -> subprocess.Popen[bytes]:
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
            *changes,
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


def two_nodes() -> list[list[str]]:
    """The command of each, as `docs/launch.md` has it, where both are this machine."""
    meeting = ["--rdzv_id=run1", "--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{free_port()}"]
    return [["torchrun", "--nnodes=2", "--nproc_per_node=1", "--max_restarts=0", *meeting]] * 2


def test_four_starts_on_other_ranks_and_stages_are_one_curve(
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

    # Two nodes of one rank, ZeRO-3, for ten steps.
    steps = f"train.steps={first + 15}"
    path = at_stage(run_path, tmp_path, 3)
    nodes = [start(output, path, *command, changes=[steps]) for command in two_nodes()]
    assert [node.wait(300) for node in nodes] == [0, 0]

    # Two ranks that hold each row together, ZeRO-3, for ten steps more.
    shared = (f"train.steps={first + 25}", "train.sequence_parallel=2", "train.micro_batch_size=1")
    launcher = start(output, path, "torchrun", "--standalone", "--nproc_per_node=2", changes=shared)
    assert launcher.wait(300) == 0

    found, wanted = (read_metrics(folder / "metrics.jsonl") for folder in (output, alone))
    assert [record["step"] for record in found] == list(range(1, first + 26))
    # The run alone is longer, so that the signal comes in time.
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in wanted[: len(found)]], abs=1e-5)


def at_stage(run_path: Path, folder: Path, stage: int) -> Path:
    """The run file at another ZeRO stage, in which parameters as small as these are sharded."""
    path = folder / f"stage-{stage}.yaml"
    zero = {2: "", 3: ", zero_optimization: {stage3_param_persistence_threshold: 0}"}[stage]
    path.write_text(f"{run_path.read_text()}deepspeed: {{zero_stage: {stage}{zero}}}\n")
    return path
