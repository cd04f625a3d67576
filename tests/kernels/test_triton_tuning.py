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


def compiled(tmp_path: Path, *arguments: str) -> Counter[str]:
    """The kernels that compile, in a process of its own, since Triton decides once whether it interprets."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", Path(__file__).with_name("compile_script.py"), *arguments],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return Counter(done.stdout.split())


@pytest.mark.launch
def test_every_launch_compiles_for_an_h100(tmp_path: Path) -> None:
    assert compiled(tmp_path, "90", "scan", "bfloat16:128", "bfloat16:256", "float32:16") == {
        "forward_kernel": 3,
        "queries_kernel": 3,
        "keys_kernel": 3,
        # Two block sizes are tried and the faster is taken, for whole chunks and for long ones, which take more steps.
        "scan_kernel": 4,
        "scan_back_kernel": 4,
        "ends_kernel": 3,
        "starts_kernel": 3,
        "carry_kernel": 4,
    }


@pytest.mark.launch
def test_attention_fits_into_small_gpus(tmp_path: Path) -> None:
    """Compute capability 8.6 has the least shared memory of those that multiply bf16."""
    assert compiled(tmp_path, "86", "bfloat16:64", "bfloat16:128", "bfloat16:256", "tf32:128") == {
        "forward_kernel": 4,
        "queries_kernel": 4,
        "keys_kernel": 4,
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
