"""What a run ran on: software versions and devices, for the report."""

from __future__ import annotations

import os
import platform
from importlib import metadata

import torch

PACKAGES = ("braid-lm", "torch", "deepspeed", "transformers", "sentencepiece", "numpy", "wandb")


def describe_environment(world_size: int = 1) -> dict[str, str]:
    """Names and values in words: Python, package versions, platform, devices, ranks."""
    described = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            described[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            described[package] = "not installed"
    described["platform"] = platform.platform()
    described["CPU"] = f"{_cpu_name()}, {os.cpu_count()} logical cores, threads per rank: {torch.get_num_threads()}"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        described["GPUs of this machine"] = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
        described["CUDA"] = str(torch.version.cuda or torch.version.hip)
    described["ranks"] = str(world_size)
    return described


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
