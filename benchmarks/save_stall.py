"""How long a checkpoint holds up the next step: written while training goes on, beside written before it goes on.

    python -m benchmarks.save_stall [--layers 14] [--json FILE]

A model of about 100 M parameters (fp32, AdamW: 1.2 GB of state) trains on made-up rows, one rank. Some plain steps
give the usual time of a step; then the time from asking for a checkpoint to the end of the next step is taken, less
that usual time, for both ways in turn, several times; and how long it takes until the checkpoint is current.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lm.run_file import load_run_file
from lm.train import distributed
from lm.train.data_phase import prepare_on_all_ranks
from lm.train.folder import RunFolder
from lm.train.interrupt import StopRequest
from lm.train.loop import Training
from lm.train.progress import Progress
from lm.train.saving import Saving
from lm.train.writing import HostMemory

RUN_FILE = """\
model:
  hidden_size: 768
  num_attention_heads: 12
  mixers: {{global: {{kind: attention}}}}
  layers: global*{layers}
data:
  tokenizer: {{kind: numbers, size: 512}}
  sources: [{{kind: copy, length: 32}}]
  sequence_length: 64
train:
  output_dir: "{output}"
  steps: 1000
  global_batch_tokens: 64
  asynchronous_checkpoints: {asynchronous}
  keep_checkpoints: 1
optimizer: {{lr: 1.0e-4}}
log: {{wandb: disabled}}
"""


def main() -> None:
    """Prints seconds: of a plain step, and of what a checkpoint adds to the step after it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=14)
    parser.add_argument("--steps", type=int, default=6, help="plain steps that are timed")
    parser.add_argument("--saves", type=int, default=3, help="checkpoints of each kind")
    parser.add_argument("--json", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="braid-stall-") as folder:
        found = measure(Path(folder), chosen.layers, chosen.steps, chosen.saves)
    print(f"{found['parameters'] / 1e6:.1f} M parameters, {found['bytes'] / 1e9:.2f} GB in a checkpoint")
    print(f"a plain step            {found['step']:.2f} s")
    for way in ("synchronous", "asynchronous"):
        print(
            f"{way:<12} the next step is held up by {found[way]['stall']:.2f} s, current after "
            f"{found[way]['current']:.2f} s"
        )
    print(f"a copy to host memory   {found['copy']:.2f} s")
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


def measure(folder: Path, layers: int, steps: int, saves: int) -> dict[str, Any]:
    """Medians in seconds, by the names that `main` prints."""
    runs = {}
    for way, asynchronous in (("synchronous", "false"), ("asynchronous", "true")):
        path = folder / f"{way}.yaml"
        path.write_text(RUN_FILE.format(layers=layers, output=folder / way, asynchronous=asynchronous))
        runs[way] = load_run_file(path)
    run = runs["synchronous"]
    world, progress = distributed.start(), Progress(rank=1)
    prepared = prepare_on_all_ranks(run, world, progress)
    training = Training(run, RunFolder(run.train.output_dir), world, progress, prepared, StopRequest(world))
    savings = {
        way: Saving(its, RunFolder(its.train.output_dir), training.engine, progress.say) for way, its in runs.items()
    }
    training.step()
    plain = [timed(training.step) for _ in range(steps)]
    usual = statistics.median(plain)
    found: dict[str, Any] = {"step": usual, "parameters": sum(p.numel() for p in training.engine.model.parameters())}
    stalls: dict[str, list[float]] = {way: [] for way in savings}
    current: dict[str, list[float]] = {way: [] for way in savings}
    for number in range(saves + 1):  # the first of each kind, which takes its memory, does not count
        for way, saving in savings.items():
            begin = time.perf_counter()
            saving.save(training.counters, lambda: None)
            training.step()
            held_up = time.perf_counter() - begin - usual
            saving.settle()
            if number:
                stalls[way].append(held_up)
                current[way].append(time.perf_counter() - begin)
            training.step()
    for way in savings:
        found[way] = {"stall": statistics.median(stalls[way]), "current": statistics.median(current[way])}
    memory = HostMemory()
    fragments = list(training.engine.fragments())

    def copy() -> None:
        for fragment in fragments:
            for kind, part in fragment.parts.items():
                memory.copy(f"{kind}/{fragment.name}", part[fragment.own])

    copy()
    found["copy"] = timed(copy)
    found["bytes"] = sum(part.numel() * 4 for fragment in fragments for part in fragment.parts.values())
    return found


def timed(work: Callable[[], object]) -> float:
    """Seconds that it takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


if __name__ == "__main__":
    main()
