import os
import subprocess
import sys

import pytest
import torch

from lm.train.memory import peak_memory

FAULTS = """
import resource, torch
from lm.train.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
given_back, told = faults(), keep_freed_memory()
for _ in range(16):  # until blocks are joined
    kept = faults()
print(given_back, kept if told else "unknown")
"""
RELEASE = """
import re, torch
from pathlib import Path
from lm.train.memory import keep_freed_memory, release_freed_memory

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

told = keep_freed_memory()
tensors = [torch.ones(1 << 20) for _ in range(32)]
del tensors
kept = resident()
release_freed_memory()
print(kept - resident() if told else "unknown")
"""


def test_a_peak_counts_what_was_held_and_given_back() -> None:
    before = peak_memory(torch.device("cpu"))
    assert before > 10 << 20
    wanted = before + (64 << 20)
    held = bytearray(os.urandom(1)) * wanted  # more than ever, in pages that are written to
    assert len(held) == wanted
    del held
    assert peak_memory(torch.device("cpu")) > wanted


def test_freed_memory_is_used_again_without_asking_the_system() -> None:
    """In a process of its own: the C library keeps its setting."""
    told = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    given_back, kept = told.stdout.split()
    if kept == "unknown":
        pytest.skip("this C library has no such setting")
    assert int(kept) < int(given_back) / 8


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as Linux tells it")
def test_what_is_kept_can_be_given_back_all_the_same() -> None:
    told = subprocess.run([sys.executable, "-c", RELEASE], capture_output=True, text=True, check=True).stdout.strip()
    if told == "unknown":
        pytest.skip("this C library has no such setting")
    assert int(told) > 100 << 20
