"""A small training that is killed, stopped, frozen, damaged and starved of disk, and must end as if nothing had been.

    python -m benchmarks.chaos --faults 50 --seed 0

Two ranks train a tiny hybrid. Again and again, at a random moment, a fault of a random kind is put upon it, and the
same command is given again, until the run is complete. Then its metrics are compared with those of a run that nothing
interrupted: every loss of every step must be there, with the same bits. A full disk is a small tmpfs, which needs root.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.faults import AT_ANY_MOMENT, PATIENCE_SECONDS, RANKS, Faults, Ranks, free_port, run_rank, small_disk
from lm.train.log import read_metrics
from lm.train.manifest import checkpoints

SAME = ("step", "loss", "grad_norm", "learning_rate", "tokens", "targets", "skipped", "batch_hash")
WORDS = ("seven", "quick", "brown", "foxes", "jump", "over", "a", "lazy", "dog", "while", "wizards", "box", "jugs")
RUN_FILE = """\
model:
  hidden_size: 16
  num_attention_heads: 4
  mixers:
    rat: {{kind: rat, chunk_size: 4}}
    local: {{kind: attention, window: 8}}
  layers: rat local
data:
  tokenizer: {{kind: bytes}}
  sources: [{{path: "{root}/corpus"}}]
  sequence_length: 32
  validation: {{fraction: 0.3}}
  cache_dir: "{root}/cache"
train:
  output_dir: "{output}"
  steps: {steps}
  global_batch_tokens: 128
  micro_batch_size: 2
  checkpoint_every: 3
  evaluate_every: 10
  evaluate_tokens: 256
  sample_tokens: 5
  rank_timeout: 8
optimizer: {{lr: 1.0e-2, schedule: {{kind: wsd, warmup_steps: 0.2}}}}
deepspeed: {{zero_stage: 2}}
log: {{wandb: disabled}}
"""


@dataclass
class Chaos:
    """One run under faults. root: a folder for the corpus, logs and the outputs of both runs."""

    root: Path
    steps: int
    seed: int
    done: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.spawning = multiprocessing.get_context("forkserver")
        self.spawning.set_forkserver_preload(["lm.train.loop", "lm.run_file", "deepspeed", "torch._dynamo"])
        corpus = self.root / "corpus"
        corpus.mkdir(parents=True, exist_ok=True)
        for number in range(16):
            text = " ".join(WORDS[(number * step) % len(WORDS)] for step in range(1, 40))
            (corpus / f"{number}.txt").write_text(f"document {number}: {text}\n")
        self.output = self.root / "chaos" / "out"
        self.faults = Faults(self.output, self.random)

    def start(self, output: Path) -> Ranks:
        """Starts both ranks as a launcher would."""
        run_file = self.root / f"{output.parent.name}.yaml"
        run_file.write_text(RUN_FILE.format(root=self.root, output=output, steps=self.steps))
        port = free_port()
        processes = [
            self.spawning.Process(target=run_rank, args=(rank, port, str(run_file), str(self.root / "log.txt")))
            for rank in range(RANKS)
        ]
        for process in processes:
            process.start()
        return Ranks(processes)

    def uninterrupted(self) -> Path:
        """The output of a run that nothing happened to."""
        output = self.root / "calm" / "out"
        if (codes := self.start(output).join()) != [0] * RANKS:
            raise RuntimeError(f"the uninterrupted run ended with {codes}; see {self.root}/log.txt")
        return output

    def run(self, faults: Sequence[str]) -> None:
        """The run under these kinds of faults, to its end. Raises AssertionError where a rank ends as it must not."""
        for number, kind in enumerate(faults):
            # Moments are spread over the run, so that it does not end before its last fault.
            first, last = (self.steps * (number + share) // (len(faults) + 1) for share in (0, 1))
            step = self.random.randint(max(1, first), max(1, last - 2))
            begin = time.time()
            ranks = self.start(self.output)
            if kind in AT_ANY_MOMENT and self.random.random() < 0.2:
                time.sleep(self.random.random() * 5)
            else:
                self.wait_for(ranks, step, begin)
                time.sleep(self.random.random() * 0.3)
            reached = self.written()
            self.faults.kinds[kind](ranks)
            self.done[kind] += 1
            kept = checkpoints(self.output / "checkpoints")
            newest = kept[0].name if kept else "no checkpoint"
            seconds = time.time() - begin
            print(f"{number + 1:3} step {reached:4} {kind}: {newest} is left, {seconds:.1f} s", flush=True)
        codes = self.start(self.output).join()
        assert codes == [0] * RANKS, codes

    def written(self) -> int:
        """Steps in the metrics so far."""
        path = self.output / "metrics.jsonl"
        try:
            return max((json.loads(line)["step"] for line in path.read_bytes().splitlines(True)[:-1]), default=0)
        except (FileNotFoundError, ValueError):
            return 0

    def trains_since(self, begin: float) -> bool:
        path = self.output / "metrics.jsonl"
        return path.exists() and path.stat().st_mtime > begin

    def wait_for(self, ranks: Ranks, step: int, begin: float) -> None:
        """Until this start, which was made at the time `begin`, trains and has come to a step."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while ranks.alive() and not (self.trains_since(begin) and self.written() >= step):
            if time.monotonic() > deadline:
                raise TimeoutError(f"step {step} was not reached; see {self.root}/log.txt")
            time.sleep(0.005)
        assert ranks.alive(), f"the run ended by itself before step {step}: {ranks.join()}; see {self.root}/log.txt"


def differences(calm: Path, chaos: Path) -> list[str]:
    """What the metrics of the two runs do not have in common, in words; times and speeds are not compared."""

    def figures(output: Path) -> dict[tuple[int, str], object]:
        records = read_metrics(output / "metrics.jsonl")
        keys = {key for record in records for key in record if key in SAME or key.startswith("validation_")}
        return {(record["step"], key): record[key] for record in records for key in sorted(keys) if key in record}

    expected, found = figures(calm), figures(chaos)
    return [
        f"step {step}: {key} is {found.get((step, key))} and should be {expected.get((step, key))}"
        for step, key in sorted({*expected, *found})
        if found.get((step, key)) != expected.get((step, key))
    ]


def main() -> int:
    """Prints each fault and the verdict; 0 if the run under faults ended as the other one did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps-per-fault", type=int, default=10)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="braid-chaos-") as folder:
        root = Path(folder)
        with small_disk(root / "chaos") as made:
            if not made:
                print("no tmpfs can be mounted here: the disk is never full")
            chaos = Chaos(root, chosen.steps_per_fault * (chosen.faults + 1), chosen.seed)
            calm = chaos.uninterrupted()
            begin = time.monotonic()
            try:
                chaos.run(chaos.random.choices(list(chaos.faults.kinds), k=chosen.faults))
            except (AssertionError, TimeoutError) as error:
                print((root / "log.txt").read_text()[-6000:])
                print(f"FAILED: {error}")
                return 1
            found = differences(calm, chaos.output)
        for kind, count in sorted(chaos.done.items()):
            print(f"{count:4} x {kind}")
        print("\n".join(found[:20]))
        minutes = (time.monotonic() - begin) / 60
        print(f"{chosen.faults} faults in {minutes:.1f} min, {chaos.steps} steps: {len(found)} differences")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
