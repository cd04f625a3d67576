"""Our `kernels/` folder beside the package of that name which transformers uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils.import_utils import KERNELS_MIN_VERSION

ROOT = Path(__file__).parents[2]

# Whatever transformers asks of the package is there; our folders are not.
NAMESAKE = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return lambda *given, **named: given[0] if given and callable(given[0]) else lambda wrapped: wrapped
"""
PROGRAM = """
import kernels
assert kernels.__file__ == {namesake!r}, kernels
from transformers import PreTrainedModel
from transformers.utils import is_kernels_available
assert is_kernels_available()
import lm.hf
from kernels.gated_scan import gated_scan
assert gated_scan.__globals__["__file__"].startswith({root!r})
"""


@pytest.fixture
def namesake(tmp_path: Path) -> Path:
    """A site folder with an installed `kernels`, as new as transformers wants it."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text(NAMESAKE)
    metadata = tmp_path / f"kernels-{KERNELS_MIN_VERSION}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    (metadata / "top_level.txt").write_text("kernels\n")
    return tmp_path


def run(arguments: list[str], path: list[Path], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


@pytest.mark.launch
@pytest.mark.parametrize("namesake_first", [True, False])
def test_both_packages_named_kernels_work_in_one_process(namesake: Path, namesake_first: bool) -> None:
    path = [namesake, ROOT] if namesake_first else [ROOT, namesake]
    program = PROGRAM.format(namesake=str(namesake / "kernels" / "__init__.py"), root=str(ROOT))
    done = run(["-c", program], path, namesake)
    assert done.returncode == 0, done.stderr


@pytest.mark.launch
def test_train_starts_beside_the_namesake(namesake: Path) -> None:
    done = run(["train.py", "configs/quickstart.yaml", "train.stepz=1"], [namesake], ROOT)
    assert done.returncode == 2
    assert "train.stepz" in done.stderr


@pytest.mark.launch
def test_without_a_namesake_transformers_takes_none_for_installed() -> None:
    program = "import lm, kernels.gated_scan; from transformers.utils import is_kernels_available as a; assert not a()"
    done = run(["-c", program], [ROOT], ROOT)
    assert done.returncode == 0, done.stderr
