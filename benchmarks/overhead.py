"""What the training loop costs beside bare loops: `train.py`'s steps, those of a bare DeepSpeed engine, and PyTorch's.

    python -m benchmarks.overhead [--steps 30] [--stages 0 1 2 3]

Same model, optimizer, clipping, batches and ZeRO stage; one rank, fp32. The bare loops make the forwards, backwards and
the update, and nothing else. After each step of the trainer's own loop, from its start to the start of the next, each
bare loop makes one, so that other load on the machine meets all three; figures are medians, ratios of steps per second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from lm.data.batches import Batch
from lm.data.prepare import prepare
from lm.model.decoder import LanguageModel
from lm.model.documents import Documents
from lm.run_file import RunFile
from lm.train.hook import Hook
from lm.train.loop import Training, train
from lm.train.optimizer import parameter_groups
from lm.train.periodic import Periodic
from lm.train.rows_read import Reading, RunRows

WARMUP = 3
NAMES = ("train.py", "bare DeepSpeed engine", "bare PyTorch")
RUN = {
    "model": {
        "hidden_size": 256,
        "num_attention_heads": 4,
        "mixers": {"rat": {"kind": "rat"}, "local": {"kind": "attention", "window": 64}},
        "layers": "(rat local)*2",
        "vocab_size": 1026,
        "max_position_embeddings": 256,
    },
    "data": {
        "tokenizer": {"kind": "numbers", "size": 1024},
        "sources": [{"kind": "parity"}],
        "sequence_length": 256,
    },
    "train": {"global_batch_tokens": 2048, "micro_batch_size": 4, "checkpoint_every": None, "sample_tokens": 0},
    "optimizer": {"lr": 1e-3},
    "observe": {"every": None, "recall_every": None},
    "log": {"wandb": "disabled"},
}


class BareLoop:
    """Steps of a model without anything around them, by an engine of DeepSpeed's or by PyTorch alone."""

    def __init__(self, run: RunFile, engine: bool) -> None:
        self._rows = RunRows(prepare(run.data), run.timeline)
        self._reading = Reading(run.timeline, 0, 1)
        torch.manual_seed(run.train.seed)
        model = LanguageModel(run.model)
        groups = parameter_groups(model, run.optimizer.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=run.optimizer.lr, betas=run.optimizer.betas, fused=True)
        self._step = _engine_step(model, optimizer, run) if engine else _torch_step(model, optimizer, run)

    def step(self, number: int) -> float:
        """Makes a step; the seconds it took, reading its rows included."""
        begun = time.perf_counter()
        batches = [self._rows.batch(rows) for rows in self._reading.mine(number, lambda row: row)]
        targets = sum(int((batch.targets != -100).sum()) for batch in batches)
        self._step(batches, 1 / targets)
        return time.perf_counter() - begun


Take = Callable[[Sequence[Batch], float], None]


def _engine_step(model: nn.Module, optimizer: torch.optim.Optimizer, run: RunFile) -> Take:
    import deepspeed

    accumulated = run.timeline.most_micro_batches(1)
    config = {
        "train_micro_batch_size_per_gpu": run.train.micro_batch_size,
        "gradient_accumulation_steps": accumulated,
        "gradient_clipping": run.train.gradient_clipping,
        "zero_optimization": {
            "stage": run.deepspeed.zero_stage,
            "reduce_bucket_size": sum(p.numel() for p in model.parameters()),
        },
        "steps_per_print": 1_000_000_000,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)

    def take(batches: Sequence[Batch], scale: float) -> None:
        for batch in batches:
            engine.backward(_loss(engine, batch) * scale, scale_wrt_gas=False)
            engine.step()

    return take


def _torch_step(model: nn.Module, optimizer: torch.optim.Optimizer, run: RunFile) -> Take:
    def take(batches: Sequence[Batch], scale: float) -> None:
        optimizer.zero_grad()
        for batch in batches:
            (_loss(model, batch) * scale).backward()
        nn.utils.clip_grad_norm_(model.parameters(), run.train.gradient_clipping or float("inf"))
        optimizer.step()

    return take


def _loss(model: Any, batch: Batch) -> torch.Tensor:
    documents = Documents.from_lengths(batch.lengths)
    loss: torch.Tensor = model(batch.tokens.flatten(), documents, batch.targets.flatten()).loss
    return loss


class Beside:
    """Work between the trainer's steps: one step of each bare loop. All times are kept."""

    def __init__(self, run: RunFile) -> None:
        self._loops = [BareLoop(run, engine=True), BareLoop(run, engine=False)]
        self._left = time.perf_counter()
        self.seconds: list[tuple[float, ...]] = []

    def due(self, step: int) -> bool:
        return True

    def __call__(self, step: int) -> Mapping[str, Any]:
        own = time.perf_counter() - self._left
        self.seconds.append((own, *(loop.step(step - 1) for loop in self._loops)))
        self._left = time.perf_counter()
        return {}


class Measured(Training):
    """The training whose steps are measured."""

    run: RunFile
    beside: Beside

    def periodic(self, hook: Hook | None) -> list[Periodic]:
        type(self).beside = Beside(self.run)
        return [self.beside]

    def finish(self) -> None:
        """Nothing is left behind."""


def measure(stage: int, steps: int, folder: Path) -> list[float]:
    """Median seconds of a step, by NAMES, of so many steps at a ZeRO stage."""
    own = {"output_dir": folder / f"stage-{stage}", "steps": steps + WARMUP}
    values = {**RUN, "train": RUN["train"] | own, "deepspeed": {"zero_stage": stage}}
    train(RunFile.model_validate(values), Measured)
    return [statistics.median(column) for column in zip(*Measured.beside.seconds[WARMUP:], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30, help="measured steps for each stage")
    parser.add_argument("--stages", type=int, nargs="+", default=[0, 1, 2, 3], help="ZeRO stages")
    chosen = parser.parse_args()
    table = Table(title=f"Steps per second, one rank, {torch.get_num_threads()} threads")
    for column in ("ZeRO", *NAMES, "train.py / DeepSpeed", "train.py / PyTorch"):
        table.add_column(column, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for stage in chosen.stages:
            own, engine, bare = measure(stage, chosen.steps, Path(folder))
            rates = (f"{1 / seconds:.2f}" for seconds in (own, engine, bare))
            table.add_row(f"{stage}", *rates, f"{engine / own:.3f}", f"{bare / own:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
