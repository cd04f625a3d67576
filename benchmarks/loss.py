"""Linear + cross-entropy that never holds the logits beside torch's linear and cross_entropy: time and peak memory.

Forward and backward, gradients for hidden states and weight, fp32, vocabulary 49,152 and width 576 as SmolLM2-135M has.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.measure import Clock, Save, device, interleaved, mebibytes, milliseconds, peak_bytes, under_way
from kernels.linear_cross_entropy import linear_cross_entropy

VOCAB, WIDTH = 49_152, 576
TOKENS, QUICK_TOKENS = 16_384, 1_024
ROUNDS, BUDGET = 3, 90.0
OURS, PEER = "linear_cross_entropy", "F.linear, F.cross_entropy"


def main(quick: bool, tokens: int | None, clock: Clock, save: Save) -> None:
    """Measures, prints the table and saves the figures."""
    count = tokens or (QUICK_TOKENS if quick else TOKENS)
    random = torch.Generator().manual_seed(0)
    hidden = torch.randn(count, WIDTH, generator=random).to(device()).requires_grad_()
    weight = (torch.randn(VOCAB, WIDTH, generator=random) * 0.02).to(device()).requires_grad_()
    targets = torch.randint(VOCAB, (count,), generator=random).to(device())

    def ours() -> None:
        linear_cross_entropy(hidden, weight, targets).loss.backward()
        hidden.grad = weight.grad = None  # of the run's own memory

    def theirs() -> None:
        F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum").backward()
        hidden.grad = weight.grad = None

    runs = {OURS: ours, PEER: theirs}
    with under_way(f"{count:,} tokens"):
        seconds = interleaved(runs, ROUNDS, BUDGET, clock)
        peaks = {name: peak_bytes(run) for name, run in runs.items()}
    memory = None if None in peaks.values() else (peaks[PEER] or 0) / (peaks[OURS] or 1)
    found: dict[str, Any] = {
        "tokens": count,
        "vocabulary": VOCAB,
        "width": WIDTH,
        "seconds": seconds,
        "peak_bytes": peaks,
    }
    found |= {"time_ratio": seconds[PEER] / seconds[OURS], "memory_ratio": memory}
    threads = torch.get_num_threads()
    print(f"{count:,} tokens, vocabulary {VOCAB:,}, width {WIDTH}, fp32, {threads} threads, {clock.name}")
    print("| what | ms | peak MiB |\n|---|---|---|")
    for name in runs:
        print(f"| {name} | {milliseconds(seconds[name])} | {mebibytes(peaks[name])} |")
    print(f"| ratio | {found['time_ratio']:.2f} | {'-' if memory is None else f'{memory:.2f}'} |")
    save({"loss": found})
