"""What the interpreter cannot show: that the compiler takes the kernels, as they are launched in training."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")


@pytest.mark.launch
def test_every_launch_compiles_for_a_gpu(tmp_path: Path) -> None:
    """In a process of its own, since Triton decides once whether it interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).with_name("compile_script.py")],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert Counter(done.stdout.split()) == {
        # For each of two types.
        "forward_kernel": 2,
        "queries_kernel": 2,
        "keys_kernel": 2,
        # Two block sizes are tried and the faster is taken, for whole chunks and for long ones, which take more steps.
        "scan_kernel": 4,
        "scan_back_kernel": 4,
        "ends_kernel": 3,
        "starts_kernel": 3,
        "carry_kernel": 4,
    }


def test_products_of_float32_are_as_exact_as_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    from kernels.triton_tuning import product_precision

    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert product_precision() == "ieee"
        torch.set_float32_matmul_precision("high")
        assert product_precision() == "tf32"
    finally:
        torch.set_float32_matmul_precision(precision)
