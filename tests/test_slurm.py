"""The Slurm script, with stand-ins for the commands that it calls: what it tells them, and when it queues again."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "configs" / "slurm.sbatch"
STAND_INS = {
    "srun": '#!/bin/bash\nwhile [[ $1 == --* ]]; do shift; done\nSLURM_NNODES=2 exec "$@"\n',
    "scontrol": '#!/bin/bash\n[ "$1" = show ] && printf "n1\\nn2\\n" || echo "$@" > "$SAID/scontrol"\n',
    "torchrun": """#!/bin/bash
echo "$@" > "$SAID/torchrun"
trap > "$SAID/ignored"
[ -z "$DONE" ] || touch "$DONE"
exit $CODE
""",
}


@pytest.mark.parametrize(("done", "code", "queued"), [(False, 0, True), (True, 0, False), (False, 1, False)])
def test_the_job_is_queued_again_until_the_run_is_complete(tmp_path: Path, done: bool, code: int, queued: bool) -> None:
    run = tmp_path / "run"
    run.mkdir()
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SAID": str(tmp_path / "run"),
        "DONE": str(run / "complete.json") if done else "",
        "CODE": str(code),
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_GPUS_ON_NODE": "4",
    }
    command = ["bash", str(SCRIPT), str(run), "run file.yaml", "train.steps=3"]
    assert subprocess.run(command, env=environment, check=False, timeout=60).returncode == code
    words = (run / "torchrun").read_text()
    assert words.startswith("--nnodes=2 --nproc_per_node=4 ")
    assert "--rdzv_endpoint=n1:23456 train.py run file.yaml train.steps=3 train.output_dir=" in words
    assert "USR1" in (run / "ignored").read_text()
    assert (run / "scontrol").exists() == queued
    if queued:
        assert (run / "scontrol").read_text() == "requeue 123456\n"
