import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.errors import UserError
from lm.train.file_names import METRICS_FILE
from lm.train.log import MetricsFile, RunLog, read_metrics
from lm.train.wandb_run import require_wandb_login


def records(count: int, start: int = 1) -> list[dict[str, object]]:
    return [{"step": step, "loss": 1 / (step + 2)} for step in range(start, start + count)]


def write(path: Path, items: list[dict[str, object]]) -> bytes:
    file = MetricsFile(path)
    for record in items:
        file.append(record)
    file.close()
    return path.read_bytes()


@given(loss=st.floats(allow_nan=False, allow_infinity=False))
@settings(deadline=None, max_examples=30)
def test_numbers_come_back_with_the_same_bits(tmp_path_factory: pytest.TempPathFactory, loss: float) -> None:
    path = tmp_path_factory.mktemp("log") / METRICS_FILE
    write(path, [{"step": 1, "loss": loss}])
    (record,) = read_metrics(path)
    assert math.copysign(1, record["loss"]) == math.copysign(1, loss)
    assert record["loss"] == loss


@given(cut=st.integers(min_value=0, max_value=130))
@settings(deadline=None, max_examples=50)
def test_a_file_cut_at_any_byte_keeps_its_whole_records_and_can_be_continued(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    path = tmp_path_factory.mktemp("log") / METRICS_FILE
    content = write(path, records(4))
    cut = min(cut, len(content))
    path.write_bytes(content[:cut])
    whole = content[:cut].count(b"\n")
    assert read_metrics(path) == records(4)[:whole]
    write(path, records(4 - whole, start=whole + 1))
    assert path.read_bytes() == content


def test_every_line_is_on_disk_before_the_next_is_written(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / METRICS_FILE)
    for count, record in enumerate(records(3), start=1):
        file.append(record)
        assert len(read_metrics(tmp_path / METRICS_FILE)) == count
    file.close()


def test_truncating_drops_the_steps_after_a_checkpoint_and_the_file_goes_on(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    content = write(path, records(7))
    file = MetricsFile(path)
    assert file.truncate_after(4) == 3
    assert file.truncate_after(4) == 0
    for record in records(3, start=5):
        file.append(record)
    file.close()
    assert path.read_bytes() == content
    assert [p.name for p in tmp_path.iterdir()] == [METRICS_FILE]


def test_a_broken_line_that_is_not_the_last_is_named(tmp_path: Path) -> None:
    path = tmp_path / METRICS_FILE
    path.write_bytes(b'{"step": 1}\n{"step": oops\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl: line 2 is not a record"):
        read_metrics(path)


def test_records_are_strict_json_whatever_number_types_they_hold(tmp_path: Path) -> None:
    record = {
        "step": np.int64(3),
        "loss": torch.tensor(0.5),
        "grad_norm": float("inf"),
        "list": (np.float32(1.5), float("nan")),
    }
    content = write(tmp_path / METRICS_FILE, [record])

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(content, parse_constant=refuse) == {
        "step": 3,
        "loss": 0.5,
        "grad_norm": None,
        "list": [1.5, None],
    }


def test_a_record_without_a_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="integer 'step'"):
        write(tmp_path / METRICS_FILE, [{"loss": 1.0}])


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with RunLog(tmp_path, rank=1) as log:
        log.write({"step": 1, "loss": 1.0})
        log.sync()
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_log_repeats_no_step(tmp_path: Path) -> None:
    for resumed_from in (0, 3):
        with RunLog(tmp_path, step=resumed_from, wandb="disabled") as log:
            for record in records(5 - resumed_from, start=resumed_from + 1):
                log.write(record)
    assert read_metrics(tmp_path / METRICS_FILE) == records(5)
    assert [path.name for path in tmp_path.iterdir()] == [METRICS_FILE]


def test_online_without_a_login_is_a_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(UserError, match="wandb login"):
        require_wandb_login()
    with pytest.raises(UserError, match=r"log\.wandb"):
        RunLog(tmp_path / "run", wandb="online")
    assert not (tmp_path / "run").exists()


@pytest.mark.launch
def test_wandb_offline_is_silent_and_a_resumed_run_keeps_its_id(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from lm.train.log import RunLog\n"
        "for step in (0, 2):\n"
        "    with RunLog(Path(sys.argv[1]), step=step, config={'a': {'b': 1}}) as log:\n"
        "        log.write({'step': step + 1, 'loss': 1.0, 'grad_norm': float('nan')})\n"
        "        log.write({'step': step + 2, 'loss': 1.0})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    run_id = (tmp_path / "wandb" / "run_id").read_text()
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert folders
    assert all((folder / f"run-{run_id}.wandb").stat().st_size > 0 for folder in folders)
    assert [record["step"] for record in read_metrics(tmp_path / METRICS_FILE)] == [1, 2, 3, 4]
