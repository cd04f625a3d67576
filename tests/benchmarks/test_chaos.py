"""The first few of the faults that `python -m benchmarks.chaos` puts on a run of two ranks."""

from pathlib import Path

import pytest

from benchmarks.chaos import Chaos, differences
from benchmarks.faults import small_disk

pytestmark = pytest.mark.launch


def test_a_run_under_faults_ends_as_if_nothing_had_been(tmp_path: Path) -> None:
    with small_disk(tmp_path / "chaos") as made:
        chaos = Chaos(tmp_path, steps=30, seed=0)
        calm = chaos.uninterrupted()
        chaos.run(
            [
                "SIGKILL to one rank",
                "SIGUSR1 to one rank",
                "newest checkpoint with a flipped bit",
                *(["disk full"] if made else []),
            ]
        )
        assert differences(calm, chaos.output) == []
    said = (tmp_path / "log.txt").read_text().replace("\n", " ")
    assert "stopped by SIGUSR1 after step" in said
    assert "All ranks stop; start again to go on from the newest checkpoint" in said
    assert "Traceback" not in said
