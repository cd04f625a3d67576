"""Every mixer's core beside causal attention by PyTorch and sliding windows by transformers, at growing lengths.

Eight heads of 64, one row, fp32, random inputs. A mixer's core is what stands between its projections: scans, the own
score, RAT's rotations, attention. Masks, plans and tables that all layers of a batch share are made before the clock
starts, for every side. The limit is how many times fewer query-key pairs a mixer scores than causal attention; a ratio
can pass it where its kernel is the better one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import MistralConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_sliding_window_causal_mask

from benchmarks.measure import (
    WALL,
    Clock,
    Run,
    Save,
    device,
    forward_and_backward,
    interleaved,
    mebibytes,
    milliseconds,
    peak_bytes,
    under_way,
)
from kernels import gated_scan, interval_attention
from lm.model.decoder import Decoder
from lm.model.documents import Documents
from lm.model.options import ModelOptions

HEADS, HEAD_DIM = 8, 64
SDPA, SLIDING = "SDPA causal", "transformers window 1024"
LENGTHS, QUICK_LENGTHS = (512, 1024, 4096, 8192, 16384, 32768, 65536), (512, 1024, 2048)
LONGEST_BACKWARD = 32768
LONGEST_DENSE_MASK = 16384
ROUNDS, QUICK_ROUNDS = 9, 3
BUDGET, QUICK_BUDGET = 20.0, 3.0  # seconds for one length and direction


def kinds(length: int) -> dict[str, dict[str, Any]]:
    """The mixers by name, as a run file would have them."""
    return {
        "rat 16": {"kind": "rat", "chunk_size": 16, "qk_groups": 2},
        "local 64": {"kind": "attention", "window": 64},
        "local 256": {"kind": "attention", "window": 256},
        "local 1024": {"kind": "attention", "window": 1024},
        "shifted-short T/4": {"kind": "shifted_short", "group_size": max(length // 4, 2)},
        "long-short 4 x 64": {"kind": "long_short", "short_heads": 4, "window": 64},
        "global": {"kind": "attention"},
    }


@dataclass(frozen=True)
class Figure:
    """One mixer at one length. Seconds are medians of one run; the ratio is the peer's seconds by the mixer's."""

    name: str
    length: int
    backward: bool
    seconds: float
    ratio: float | None
    peer: str
    limit: float | None
    peak_bytes: int | None


@dataclass(frozen=True)
class Core:
    """A function of leaves: what is timed."""

    call: Callable[[], Tensor]
    leaves: list[Tensor]
    pairs: int  # query-key pairs scored over all heads

    def run(self, backward: bool) -> Run:
        if backward:
            return forward_and_backward(self.call, self.leaves)
        return torch.no_grad()(self.call)


def _random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device()).requires_grad_()


def core(options: dict[str, Any], length: int) -> Core:
    """A mixer's core on one document."""
    width = HEADS * HEAD_DIM
    shape = {"vocab_size": 2, "hidden_size": width, "num_attention_heads": HEADS, "intermediate_size": 1}
    model = ModelOptions.model_validate({**shape, "mixers": {"m": options}, "layers": "m"})
    with torch.device("meta"):  # its weights are not used
        mixer: Any = Decoder(model).mixers[0].train()
    documents = Documents.from_lengths([length], device=device())
    groups = options.get("qk_groups")
    v = _random(length, HEADS, HEAD_DIM)
    if groups is None:
        q, k = _random(length, HEADS, HEAD_DIM), _random(length, HEADS, HEAD_DIM)
        leaves = [q, k, v]
    else:  # as the projections leave them: queries and keys by group, values and gates by head
        q, k, gate = (
            _random(length, groups, HEAD_DIM),
            _random(length, groups, HEAD_DIM),
            torch.sigmoid(_random(*v.shape)),
        )
        gate = gate.detach().requires_grad_()
        leaves = [q, k, v, gate]
    mix = mixer.mix if mixer.over_tokens else mixer.attend
    return Core(lambda: mix(*leaves, documents), leaves, mixer.scored_pairs(documents))


def sdpa(length: int) -> Core:
    """PyTorch's causal attention, heads first, as it likes them best."""
    q, k, v = leaves = [_random(1, HEADS, length, HEAD_DIM) for _ in range(3)]
    pairs = HEADS * length * (length + 1) // 2
    return Core(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True), leaves, pairs)


def sliding(length: int, window: int = 1024) -> Core:
    """What transformers runs in a sliding-window layer with attn_implementation="sdpa", its mask made beforehand."""
    q, k, v = leaves = [_random(1, HEADS, length, HEAD_DIM) for _ in range(3)]
    config = MistralConfig(
        hidden_size=HEADS * HEAD_DIM, num_attention_heads=HEADS, num_key_value_heads=HEADS, sliding_window=window
    )
    config._attn_implementation = "sdpa"
    inputs = torch.empty(1, length, 1, device=device())
    mask = create_sliding_window_causal_mask(config, inputs, None, None, allow_is_causal_skip=False)
    module = torch.nn.Module()
    module.is_causal = True  # type: ignore[assignment]
    return Core(lambda: sdpa_attention_forward(module, q, k, v, mask)[0], leaves, HEADS * length * min(window, length))


def measure(
    length: int, backward: bool, names: Sequence[str], rounds: int, budget: float, clock: Clock = WALL
) -> list[Figure]:
    """All mixers named at one length, and their peers, in one run."""
    cores = {SDPA: sdpa(length)} | {name: core(kinds(length)[name], length) for name in names}
    if "local 1024" in names and 1024 < length <= LONGEST_DENSE_MASK and not backward:
        cores[SLIDING] = sliding(length)
    runs = {name: found.run(backward) for name, found in cores.items()}
    seconds = interleaved(runs, rounds, budget, clock)
    figures = []
    for name, found in cores.items():
        figure = Figure(
            name,
            length,
            backward,
            seconds[name],
            None if name == SDPA else seconds[SDPA] / seconds[name],
            SDPA,
            None if name in (SDPA, SLIDING) else cores[SDPA].pairs / found.pairs,
            None if name == SDPA and seconds[name] > budget else peak_bytes(runs[name]),
        )
        figures.append(figure)
    if SLIDING in cores:
        limit = length * length * HEADS / cores["local 1024"].pairs
        ratio = seconds[SLIDING] / seconds["local 1024"]
        figures.append(Figure("local 1024", length, backward, seconds["local 1024"], ratio, SLIDING, limit, None))
    return figures


def directed(backward: bool) -> str:
    return "forward + backward" if backward else "forward"


def table(figures: Sequence[Figure]) -> str:
    """Markdown, one line for each figure."""
    lines = []
    for figure in figures:
        ratio = "" if figure.ratio is None else f"{figure.ratio:.2f} x {figure.peer}"
        limit = "" if figure.limit is None else f"{figure.limit:.1f}"
        lines.append(
            f"| {figure.name} | {figure.length:,} | {directed(figure.backward)} | {milliseconds(figure.seconds)} "
            f"| {ratio} | {limit} | {mebibytes(figure.peak_bytes)} |"
        )
    return "\n".join(lines)


HEADER = "| mixer | tokens | what | ms | ratio | limit | peak MiB |\n|---|---|---|---|---|---|---|"


def main(
    quick: bool,
    lengths: Sequence[int] | None,
    names: Sequence[str] | None,
    directions: Sequence[bool],
    clock: Clock,
    save: Save,
) -> None:
    """Measures each length and direction, prints the table and saves the figures while they grow."""
    attention, scan = (operation.default(device().type) for operation in (interval_attention, gated_scan))
    print(
        f"{HEADS} heads of {HEAD_DIM}, one row, fp32, {torch.get_num_threads()} threads, "
        f"attention backend {attention}, scan backend {scan}, {clock.name}"
    )
    print(HEADER, flush=True)
    chosen = lengths or (QUICK_LENGTHS if quick else LENGTHS)
    rounds, budget = (QUICK_ROUNDS, QUICK_BUDGET) if quick else (ROUNDS, BUDGET)
    asked = [(n, backward) for n in chosen for backward in directions if not backward or n <= LONGEST_BACKWARD]
    found: list[dict[str, Any]] = []
    for number, (length, backward) in enumerate(asked, 1):
        with under_way(f"{length:,} tokens {directed(backward)}", number, len(asked)):
            figures = measure(length, backward, names or list(kinds(length)), rounds, budget, clock)
        print(table(figures), flush=True)
        found += map(asdict, figures)
        save({"attention": attention, "scan": scan, "mixers": found})
