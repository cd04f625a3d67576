"""Two ranks, started the ways that users start them."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lm.run_file import RunFile, load_run_file
from lm.train import manifest
from lm.train.log import read_metrics
from lm.train.loop import train

pytestmark = pytest.mark.launch

MakeRun = Callable[..., RunFile]
SCRIPT = Path(__file__).with_name("stages_script.py")
ROOT = Path(__file__).parents[3]
OVERRIDES = ("train.evaluate_tokens=512", "train.checkpoint_every=10")


def launch(*command: str) -> None:
    """Runs a command of this environment's bin folder, with the repository's packages."""
    binaries = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [binaries / command[0], *command[1:]], env=environment | {"OMP_NUM_THREADS": "1"}, check=True, timeout=300
    )


def curve(folder: Path, key: str = "loss") -> list[float]:
    """A figure of every step, which must all be there."""
    records = read_metrics(folder / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 21))
    return [record[key] for record in records if key in record]


@pytest.fixture(scope="module")
def alone(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of the same run in one process, without ZeRO."""
    output = tmp_path_factory.mktemp("alone") / "out"
    train(load_run_file(run_path, [f"train.output_dir={output}", *OVERRIDES]))
    return output


def test_two_ranks_of_torchrun_train_as_one_process_does(
    run_path: Path, make_run: MakeRun, alone: Path, tmp_path: Path
) -> None:
    launch("torchrun", "--standalone", "--nproc_per_node=2", str(SCRIPT), str(run_path), str(tmp_path), *"0123")
    for stage in range(4):
        folder = tmp_path / f"stage-{stage}"
        for key in ("loss", "grad_norm", "validation_loss"):
            assert curve(folder, key) == pytest.approx(curve(alone, key), abs=1e-5), (stage, key)
        assert (folder / "complete.json").exists()
        check_observations(folder, tmp_path / "stage-0", alone)
    for stage in (1, 3):
        check_one_process_goes_on(tmp_path / f"stage-{stage}", make_run, alone)


def check_observations(folder: Path, unsharded: Path, alone: Path) -> None:
    """Layers look the same at every stage; loss by position, which is of all tokens, on any number of ranks, too."""
    first, of_unsharded, of_alone = (read_metrics(run / "metrics.jsonl")[0] for run in (folder, unsharded, alone))
    layers = [key for key in first if key.startswith("layers/")]
    assert {key.split("/")[1] for key in layers} > {"logit_max", "entropy", "half_life", "gradient_rms"}
    for key in layers:
        assert first[key] == pytest.approx(of_unsharded[key], rel=1e-4), key
    for key in (key for key in of_alone if key.startswith("position_loss/")):
        assert first[key] == pytest.approx(of_alone[key], rel=1e-4), key


def check_one_process_goes_on(folder: Path, make_run: MakeRun, alone: Path) -> None:
    """A run of two ranks, put back to its first checkpoint, is finished by one process without ZeRO."""
    (folder / "complete.json").unlink()
    newest = manifest.checkpoints(folder / "checkpoints")[0]
    assert json.loads((newest / "counters.json").read_text())["world"] == 2
    shutil.rmtree(newest)
    before = curve(folder)
    train(make_run(f"train.output_dir={folder}", *OVERRIDES))
    assert curve(folder)[:10] == before[:10]
    assert curve(folder) == pytest.approx(curve(alone), abs=1e-5)
