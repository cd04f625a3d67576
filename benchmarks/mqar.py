"""Recall by mixer: every run file of configs/mqar, on the same rows, with several seeds, in a table and a chart.

    python -m benchmarks.mqar [--seeds 3] [--runs runs/mqar] [--svg docs/mqar.svg] [--json FILE]

Each run is a process of its own with one thread. A run that is complete is not run again, and one that was stopped goes
on, so the same command finishes what it began. Seeds differ in weights and training rows; the 4,096 held-out queries
are the same ones for all. The cache is what the mixers keep of 64 tokens, counted in numbers of the cache's type.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lm.arguments import positive
from lm.run_file import load_run_file
from lm.train.log import read_metrics
from lm.train.report.charts import Bar, bar_chart
from lm.train.report.svg import svg_file

CONFIGS = Path(__file__).parents[1] / "configs" / "mqar"
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Result:
    """One model over its seeds.

    accuracies: of the last step, one per seed. solved: the first evaluated step of each seed with 0.99 or more, None
    where there was none. seconds: wall-clock time in training steps, of each seed.
    """

    name: str
    layers: str
    short_conv: bool
    parameters: int
    cache_floats: int
    reach: int
    steps: int
    accuracies: tuple[float, ...]
    solved: tuple[int | None, ...]
    seconds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.accuracies)


def train(config: Path, seed: int, folder: Path) -> None:
    """Runs `braid train`, or finds its run complete. Raises CalledProcessError where it fails."""
    seeds = [f"train.seed={seed}", f"data.seed={seed}", f"train.output_dir={folder}"]
    command = [sys.executable, "-m", "lm", "train", os.fspath(config), *seeds]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def result_of(config: Path, folders: Sequence[Path]) -> Result:
    """What the finished runs of one config left in their folders, one per seed."""
    run = load_run_file(config)
    plan = json.loads((folders[0] / "plan.json").read_text())
    evaluations = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    metrics = [read_metrics(folder / "metrics.jsonl") for folder in folders]
    return Result(
        name=config.stem,
        layers=run.model.layers,  # type: ignore[union-attr]
        short_conv=all(mixer.short_conv is not None for mixer in run.model.mixers.values()),  # type: ignore[union-attr]
        parameters=plan["parameters"],
        cache_floats=plan["cache_bytes"] // FLOAT_BYTES,
        reach=plan["layers"][-1]["reach"],
        steps=run.train.steps,
        accuracies=tuple(evaluation["accuracy"] for evaluation in evaluations),
        solved=tuple(map(first_solved, metrics)),
        seconds=tuple(sum(record["step_seconds"] for record in records) for records in metrics),
    )


def first_solved(records: Sequence[dict[str, Any]]) -> int | None:
    """The first step whose held-out accuracy is 0.99 or more."""
    return next((record["step"] for record in records if record.get("validation_accuracy", 0) >= 0.99), None)


def table(results: Sequence[Result]) -> str:
    """Markdown, the best first."""
    lines = [
        "| model | layers | accuracy, mean | least to most | steps to 0.99 | cache, floats | parameters |",
        "|---|---|---|---|---|---|---|",
    ]
    for found in results:
        solved = ", ".join("-" if step is None else str(step) for step in found.solved)
        lines.append(
            f"| {found.name} | `{found.layers}` | {found.mean:.3f} | "
            f"{min(found.accuracies):.3f} to {max(found.accuracies):.3f} | "
            f"{solved} | {found.cache_floats:,} | {found.parameters:,} |"
        )
    return "\n".join(lines)


def chart(results: Sequence[Result]) -> str:
    """An SVG file: mean accuracy as bars, the seeds' range as a line across the end of each."""
    bars = [Bar(found.name, found.mean, spread=(min(found.accuracies), max(found.accuracies))) for found in results]
    return svg_file(bar_chart("Recall: share of 4,096 queries answered", bars))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="runs of each model; 3 if left out")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/mqar"), metavar="FOLDER", help="where the runs are kept"
    )
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw the chart here")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    chosen = parser.parse_args()
    folders = {config: [chosen.runs / f"{config.stem}-{seed}" for seed in range(chosen.seeds)] for config in configs()}
    for seed in range(chosen.seeds):
        for config, runs in folders.items():
            train(config, seed, runs[seed])
    results = sorted((result_of(config, runs) for config, runs in folders.items()), key=lambda found: -found.mean)
    print(table(results))
    if chosen.svg is not None:
        chosen.svg.write_text(chart(results), encoding="utf-8")
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([asdict(found) for found in results], indent=2) + "\n")


def configs() -> list[Path]:
    """The run files, by name."""
    return sorted(CONFIGS.glob("*.yaml"))


if __name__ == "__main__":
    main()
