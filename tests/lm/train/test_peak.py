import time

import pytest
import torch

from lm.train.peak import data_sheet_peak, device_peak


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA A10G", None),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_gpus_by_the_names_that_pytorch_gives_them(name: str, teraflops: float | None) -> None:
    assert data_sheet_peak(name) == (None if teraflops is None else teraflops * 1e12)


def test_the_cpu_is_measured_quickly_and_plausibly() -> None:
    start = time.perf_counter()
    peak = device_peak(torch.device("cpu"), torch.float32)
    assert time.perf_counter() - start < 2
    assert 1e8 < peak < 1e14


def test_ranks_share_the_cores_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr("lm.train.peak._cores", lambda: 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr("lm.train.peak._measure_one_thread", lambda dtype: 1e9)
    for variable, ranks in (("LOCAL_WORLD_SIZE", 2), ("LOCAL_SIZE", 4), ("LOCAL_SIZE", 100)):
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        monkeypatch.setenv(variable, str(ranks))
        assert device_peak(torch.device("cpu"), torch.float32) == max(1, 8 // ranks) * 1e9
    monkeypatch.undo()
    assert torch.get_num_threads() == threads
