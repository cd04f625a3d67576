"""What shifted groups save over full attention in training: time of the attention alone, and of whole steps.

    python -m benchmarks.extension_speed [--lengths 4096,8192] [--rounds 5] [--json FILE]

A step is forward and backward over one row, layers recomputed, of the small Llama of `benchmarks.extension` with
LongLoRA's preset, fp32; groups are a quarter of the length. Attention alone is forward and backward of 8 heads of 64,
beside PyTorch's own causal kernel. All take turns; medians of the rounds. Counted is the processor time of one thread,
which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.extension import LLAMA
from lm.arguments import positive
from lm.extend.adapters import add_adapters
from lm.extend.attention import attend
from lm.extend.model import extended
from lm.extend.options import LoraOptions, default_group
from lm.model.documents import Documents

HEADS, HEAD_DIM = 8, 64
SHIFTED, FULL, PYTORCH = "shifted groups", "full", "PyTorch, full"
Seconds = dict[str, float]


def medians(works: Mapping[str, Callable[[], object]], rounds: int) -> Seconds:
    """Median seconds of processor time of each, taken in turns after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for round_number in range(rounds + 1):
        for name, work in works.items():
            began = time.process_time()
            work()
            if round_number:
                seconds[name].append(time.process_time() - began)
    return {name: statistics.median(found) for name, found in seconds.items()}


def attention_works(length: int) -> dict[str, Callable[[], object]]:
    """Forward and backward of attention alone, by name."""
    q, k, v = (torch.randn(length, HEADS, HEAD_DIM, requires_grad=True) for _ in range(3))
    grad = torch.randn(length, HEADS, HEAD_DIM)
    documents = Documents.from_lengths([length])

    def ours(group: int | None) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(q, k, v, documents, group), (q, k, v), grad)

    def theirs() -> object:
        heads_first = (x.transpose(0, 1)[None] for x in (q, k, v))
        out = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True)
        return torch.autograd.grad(out[0].transpose(0, 1), (q, k, v), grad)

    return {SHIFTED: ours(default_group(length)), FULL: ours(None), PYTORCH: theirs}


def step_works(length: int) -> dict[str, Callable[[], object]]:
    """Forward and backward of the whole model over one row, by name."""
    documents, tokens = Documents.from_lengths([length]), torch.randint(0, LLAMA["vocab_size"], (length,))

    def step(group: int | None) -> Callable[[], object]:
        torch.manual_seed(0)
        llama = LlamaForCausalLM(LlamaConfig(**LLAMA | {"max_position_embeddings": length}))
        model = extended(llama, group)
        add_adapters(llama, LoraOptions(preset="longlora"))
        model.train()
        return lambda: model(tokens, documents, tokens.roll(-1)).loss.backward()

    return {SHIFTED: step(default_group(length)), FULL: step(None)}


def table(found: Mapping[str, Mapping[str, Seconds]]) -> str:
    """Markdown; found: by length, "attention" and "step"."""
    lines = [
        "| tokens | what | shifted groups | full attention | ratio | PyTorch's kernel |",
        "|---|---|---|---|---|---|",
    ]
    for length, parts in found.items():
        for part, seconds in parts.items():
            shown = [f"{seconds[name]:.3f} s" if name in seconds else "" for name in (SHIFTED, FULL, PYTORCH)]
            ratio = seconds[FULL] / seconds[SHIFTED]
            lines.append(f"| {int(length):,} | {part} | {shown[0]} | {shown[1]} | {ratio:.2f} | {shown[2]} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", default="4096,8192", metavar="N,N", help="tokens of a row; 4096,8192 if left out")
    parser.add_argument("--rounds", type=positive, default=5, metavar="N", help="5 if left out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, Seconds]] = {}
    for length in map(positive, chosen.lengths.split(",")):
        works = {"attention": attention_works(length), "step": step_works(length)}
        found[str(length)] = {part: medians(work, chosen.rounds) for part, work in works.items()}
        if chosen.json is not None:
            chosen.json.write_text(json.dumps(found, indent=2) + "\n")
    print(table(found))


if __name__ == "__main__":
    main()
