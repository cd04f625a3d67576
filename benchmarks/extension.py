"""What each part of LongLoRA's recipe gains: a small Llama from 512 to 4,096 tokens, by several recipes and seeds.

    python -m benchmarks.extension [--seeds 3] [--runs runs/extension] [--json FILE]

A Llama of 3.15 million random weights is trained on the Python standard library in rows of 512 and exported; then, for
each seed, every recipe trains it for the same steps on the same rows of 4,096, over linearly interpolated positions.
All of it goes through `braid train` and `braid export`, in processes of one thread. What is complete is not done again,
and what was stopped goes on, so the same command finishes what it began. Seeds differ in the adapters' first weights
and in the rows that are read; the base and the held-out text are the same for all.

The figure is the loss of the last 256 tokens of held-out windows, in nats per token, with all 4,096 tokens before it or
the last 512 only.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from eval.length_figures import Bench
from eval.model import Model
from lm.arguments import positive
from lm.data.prepare import prepare
from lm.export import model_of_run, read_run
from lm.extend.export import base_model, plain_model
from lm.extend.measure_options import MeasureOptions
from lm.hf.tokenizer import fast_tokenizer
from lm.run_file import ExtensionFile, load_run_file
from lm.train.before_after import BEFORE, ROPE_ONLY

CONTEXT, TARGET = 512, 4096
MEASURE = MeasureOptions(lengths=(CONTEXT, TARGET), windows=16, last_k=256, passkey=None)
LLAMA = {
    "vocab_size": 2048,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
BASE_RUN: dict[str, Any] = {
    "data": {"tokenizer": {"kind": "sentencepiece", "vocab_size": LLAMA["vocab_size"]}, "sequence_length": CONTEXT},
    "train": {"steps": 400, "global_batch_tokens": 4 * CONTEXT, "micro_batch_size": 4},
    "optimizer": {"lr": 4.0e-3, "schedule": {"kind": "wsd", "warmup_steps": 0.07, "decay_steps": 0.3}},
}
EXTENSION_RUN: dict[str, Any] = {
    "measure": None,  # measured below, so that each model is only once
    "data": {"sequence_length": TARGET},
    "train": {"steps": 30, "global_batch_tokens": TARGET},
    "optimizer": {"lr": 1.0e-3, "weight_decay": 0.0, "schedule": {"kind": "constant", "warmup_steps": 0.1}},
}
GROUPS: dict[str, Any] = {"target_length": TARGET, "attention": "shifted_short"}
FULL: dict[str, Any] = {"target_length": TARGET, "attention": "full"}
RECIPES: dict[str, dict[str, Any]] = {
    "shifted groups, LoRA alone": {"extend": GROUPS, "lora": {}},
    "shifted groups, LoRA, embeddings and norms": {"extend": GROUPS, "lora": {"preset": "longlora"}},
    "full attention, LoRA, embeddings and norms": {"extend": FULL, "lora": {"preset": "longlora"}},
    "full attention, everything trained": {"extend": FULL, "lora": None},
}
COLUMNS = (BEFORE, ROPE_ONLY, *RECIPES)
Figures = dict[str, dict[str, float]]
"""By model and by length, the loss."""
Builder = Callable[[], PreTrainedModel]


def make_base(runs: Path) -> Path:
    """The trained base as a Hugging Face folder below `runs`. Raises CalledProcessError where its run fails."""
    random, trained = runs / "random", runs / "llama"
    if not (random / "config.json").exists():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**LLAMA)).save_pretrained(random)
    train(runs / "base.yaml", 0, runs / "base", {"base": {"path": str(random)}, **BASE_RUN})
    if not (trained / "tokenizer_config.json").exists():  # written last
        braid("export", runs / "base", trained)
    return trained


def run_seed(seed: int, runs: Path, base: Path) -> Figures:
    """Trains and measures what is missing of one seed. Raises CalledProcessError where a run fails."""
    folder = runs / str(seed)
    folder.mkdir(exist_ok=True)
    files = {name: folder / f"{slug(name)}.yaml" for name in RECIPES}
    for name, recipe in RECIPES.items():
        train(files[name], seed, folder / slug(name), {"base": {"path": str(base)}, **recipe, **EXTENSION_RUN})
    run = load_run_file(files[COLUMNS[-1]])
    assert isinstance(run, ExtensionFile)
    untrained = {
        BEFORE: partial(base_model, run.trainee, run.trainee.config),
        ROPE_ONLY: partial(plain_model, run.trainee),
    }
    trained = {name: partial(trained_model, folder / slug(name)) for name in RECIPES}
    return {
        **measure(runs / "figures.json", run, (runs / "base.yaml").read_text(), untrained),
        **measure(folder / "figures.json", run, [path.read_text() for path in files.values()], trained),
    }


def trained_model(folder: Path) -> PreTrainedModel:
    """What a run trained, merged."""
    return model_of_run(read_run(folder))[0]


def train(path: Path, seed: int, output: Path, settings: Mapping[str, Any]) -> None:
    """Writes a run file and trains it, or finds its run complete."""
    path.write_text(yaml.safe_dump(run_file(seed, output, settings), sort_keys=False))
    braid("train", path)


def run_file(seed: int, output: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with what all runs share."""
    shared: dict[str, Any] = {
        "data": {
            "sources": [{"path": "python-stdlib"}],
            "seed": seed,
            "validation": {"fraction": 0.02, "max_bytes": 250_000},
        },
        "train": {"output_dir": str(output), "seed": seed, "checkpoint_every": 50, "sample_tokens": 0},
        "log": {"wandb": "disabled"},
    }
    sections = {key: value | settings.get(key, {}) for key, value in shared.items()}
    return {**settings, **sections}


def braid(*words: str | Path) -> None:
    """Runs the `braid` command."""
    command = [sys.executable, "-m", "lm", *map(os.fspath, words)]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def measure(path: Path, run: ExtensionFile, state: object, models: Mapping[str, Builder]) -> Figures:
    """The losses of the models; those in the file `path` that were found for the same `state` are kept.

    run: one of the runs, whose held-out text is everyone's. models: by name what builds each in fp32.
    """
    known = json.loads(path.read_text()) if path.exists() else {}
    figures: Figures = known["figures"] if known.get("state") == state else {}
    bench = None
    for name, build in models.items():
        if name in figures:
            continue
        bench = bench or bench_of(run)
        model = Model(build(), bench.tokenizer, name)
        found = (bench.measure(model, ("last_tokens", length, None)) for length in bench.lengths)
        figures[name] = {str(figure.length): figure.value for figure in found}
        path.write_text(json.dumps({"state": state, "figures": figures}, indent=2))
    return figures


def bench_of(run: ExtensionFile) -> Bench:
    """What all models are measured on."""
    prepared = prepare(run.data)
    return Bench(MEASURE, CONTEXT, TARGET, prepared, fast_tokenizer(prepared.tokenizer, TARGET))


def slug(name: str) -> str:
    """A file name for a recipe."""
    return name.replace(",", "").replace(" ", "-")


def table(seeds: Sequence[Figures]) -> str:
    """Markdown, in the order of the recipes: the mean over seeds, and each seed's loss, at both lengths."""
    lines = [f"| model | {TARGET:,}: mean | seeds | {CONTEXT}: mean | seeds |", "|---|---|---|---|---|"]
    for name in COLUMNS:
        cells = []
        for length in (TARGET, CONTEXT):
            losses = [figures[name][str(length)] for figures in seeds]
            cells += [f"{statistics.fmean(losses):.3f}", ", ".join(f"{loss:.3f}" for loss in losses)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=positive, default=3, metavar="N", help="runs of each recipe; 3 if left out")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/extension"), metavar="FOLDER", help="where the runs are kept"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here, too")
    chosen = parser.parse_args()
    chosen.runs.mkdir(parents=True, exist_ok=True)
    base_folder, seeds = make_base(chosen.runs), []
    for seed in range(chosen.seeds):
        seeds.append(run_seed(seed, chosen.runs, base_folder))
        print(table(seeds), flush=True)
        if chosen.json is not None:
            settings = {"model": LLAMA, "base": BASE_RUN, "extension": EXTENSION_RUN, "recipes": RECIPES}
            chosen.json.write_text(json.dumps({"settings": settings, "seeds": seeds}, indent=2) + "\n")


if __name__ == "__main__":
    main()
