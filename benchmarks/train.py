"""A whole training step of hybrids and of an all-global model beside a transformers Llama of the same shape.

Width 512, 8 heads, 4 layers, vocabulary 8,192, fp32, AdamW. A step is forward, loss, backward and optimizer over rows
of one length: as many rows as make 2,048 tokens, at least one. Llama runs as transformers has it, with SDPA attention
and its own loss; all models in one run, in turn, on the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.measure import WALL, Clock, Run, Save, device, interleaved, mebibytes, peak_bytes, under_way
from benchmarks.peer import HEADS, VOCAB, WIDTH, llama
from lm.model.decoder import LanguageModel
from lm.model.documents import Documents
from lm.model.options import ModelOptions

LAYERS = 4
TOKENS = 2048
LENGTHS, QUICK_LENGTHS = (512, 2048, 8192), (512,)
ROUNDS, BUDGET = 7, 40.0
QUICK_ROUNDS, QUICK_BUDGET = 3, 20.0
PEER = "transformers Llama"
MIXERS: dict[str, dict[str, Any]] = {
    "rat": {"kind": "rat", "chunk_size": 16},
    "local": {"kind": "attention", "window": 256},
    "ls": {"kind": "long_short", "short_heads": 4, "window": 64},
    "global": {"kind": "attention"},
}
PATTERNS = {
    "RAT-16 + local-256": "(rat local)*2",
    "local-256 3:1 global": "local*3 global",
    "long-short": "ls*4",
    "all global": "global*4",
}


@dataclass(frozen=True)
class Figure:
    """One model at one length. The ratio is its tokens per second by the peer's, in the same run."""

    name: str
    length: int
    rows: int
    tokens_per_second: float
    ratio: float
    peak_bytes: int | None
    parameters: int


def _braid(layers: str) -> LanguageModel:
    options = {"vocab_size": VOCAB, "hidden_size": WIDTH, "num_attention_heads": HEADS, "layers": layers}
    used = {name: mixer for name, mixer in MIXERS.items() if name in layers}
    torch.manual_seed(0)
    return LanguageModel(ModelOptions.model_validate({**options, "mixers": used})).to(device())


def _braid_step(model: LanguageModel, ids: Tensor) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    targets = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100).flatten()

    def step() -> None:
        documents = Documents.from_lengths([ids.shape[1]] * len(ids), device=ids.device)  # a new batch each step
        (model(ids.flatten(), documents, targets).loss / (targets.numel() - len(ids))).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _llama_step(model: LlamaForCausalLM, ids: Tensor) -> Run:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure(length: int, names: Sequence[str], rounds: int, budget: float, clock: Clock = WALL) -> list[Figure]:
    """The models named and the peer at one length, in one run."""
    ids = torch.randint(VOCAB, (max(1, TOKENS // length), length), generator=torch.Generator().manual_seed(0))
    ids = ids.to(device())
    models: dict[str, Any] = {name: _braid(PATTERNS[name]) for name in names}
    intermediate = next(iter(models.values())).options.intermediate_size
    models[PEER] = llama(LAYERS, intermediate, length, use_cache=False)
    runs = {name: (_llama_step if name == PEER else _braid_step)(model, ids) for name, model in models.items()}
    seconds = interleaved(runs, rounds, budget, clock)
    return [
        Figure(
            name,
            length,
            len(ids),
            ids.numel() / seconds[name],
            seconds[PEER] / seconds[name],
            peak_bytes(runs[name]),
            sum(parameter.numel() for parameter in models[name].parameters()),
        )
        for name in models
    ]


def main(quick: bool, lengths: Sequence[int] | None, names: Sequence[str] | None, clock: Clock, save: Save) -> None:
    """Measures each length, prints the table and saves the figures while they grow."""
    print(f"a training step, {LAYERS} layers of width {WIDTH}, fp32, {torch.get_num_threads()} threads, {clock.name}")
    print(
        "| model | length | rows | tokens/s | ratio | peak MiB | parameters |\n|---|---|---|---|---|---|---|",
        flush=True,
    )
    rounds, budget = (QUICK_ROUNDS, QUICK_BUDGET) if quick else (ROUNDS, BUDGET)
    found: list[dict[str, Any]] = []
    chosen = lengths or (QUICK_LENGTHS if quick else LENGTHS)
    for number, length in enumerate(chosen, 1):
        with under_way(f"{length:,} tokens", number, len(chosen)):
            figures = measure(length, names or list(PATTERNS), rounds, budget, clock)
        for figure in figures:
            print(
                f"| {figure.name} | {figure.length:,} | {figure.rows} | {figure.tokens_per_second:,.0f} "
                f"| {figure.ratio:.2f} | {mebibytes(figure.peak_bytes)} | {figure.parameters:,} |",
                flush=True,
            )
        found += map(asdict, figures)
        save({"train": found})
