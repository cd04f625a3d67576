"""Decoding deep into a long context: a RAT + local hybrid beside a transformers Llama of the same shape.

Both models have 8 layers of width 512 with 8 heads, random weights, one row, fp32, this machine's default device for
both. Their caches are filled up to the position with random keys and values of the right shape (no prefill: neither
speed depends on what the cache holds), then steps of one token through each model's `forward` are timed in turn, so
that other load on the machine meets both. Llama has its default cache, DynamicCache.

The second table compares cache bytes, measured from caches that hold the same number of tokens.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, LlamaForCausalLM

from benchmarks.measure import WALL, Clock, Save, device, under_way
from benchmarks.peer import HEADS, VOCAB, WIDTH, llama
from lm.hf import BraidCache, BraidConfig, BraidForCausalLM
from lm.model.documents import Documents

LAYERS = 8
HYBRID = {
    "mixers": {"rat": {"kind": "rat", "chunk_size": 16}, "local": {"kind": "attention", "window": 1024}},
    "layers": f"(rat local)*{LAYERS // 2}",
}
ALL_GLOBAL = {"mixers": {"global": {"kind": "attention"}}, "layers": f"global*{LAYERS}"}


def braid(position: int, **pattern: Any) -> BraidForCausalLM:
    """A Braid model of this benchmark's shape."""
    torch.manual_seed(0)
    config = BraidConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        num_attention_heads=HEADS,
        max_position_embeddings=2 * position,
        tie_word_embeddings=True,
        **pattern,
    )
    model: BraidForCausalLM = BraidForCausalLM(config).eval()
    return model


def fill_braid(model: BraidForCausalLM, position: int) -> BraidCache:
    """A cache as after `position` tokens; each mixer is fed random hidden states by itself, which is its prefill."""
    cache = BraidCache()
    layers = cache.open(model.model, 1, model.dtype, model.device)
    documents = Documents.from_lengths([position], device=model.device)
    hidden = torch.randn(position, WIDTH, dtype=model.dtype, device=model.device)
    for mixer, layer in zip(model.model.mixers, layers.layers, strict=True):
        mixer(hidden, documents, layer)
    layers.seen = documents.total
    cache.columns = position
    return cache


def fill_llama(model: LlamaForCausalLM, position: int) -> DynamicCache:
    """Its default cache with random keys and values of `position` tokens."""
    cache = DynamicCache(config=model.config)
    for layer in range(model.config.num_hidden_layers):
        keys, values = torch.randn(2, 1, HEADS, position, WIDTH // HEADS, dtype=model.dtype, device=model.device)
        cache.update(keys, values, layer)
    return cache


def stepper(model: Any, cache: Any) -> Callable[[], None]:
    token = torch.ones(1, 1, dtype=torch.int64, device=model.device)

    def step() -> None:
        model(input_ids=token, past_key_values=cache, logits_to_keep=1).logits.argmax().item()

    return step


def tokens_per_second(step: Callable[[], None], steps: int, clock: Clock = WALL) -> float:
    started = clock.read()
    for _ in range(steps):
        step()
    return steps / (clock.read() - started)


def measure_speed(position: int, rounds: int, clock: Clock = WALL) -> dict[str, float]:
    """Median tokens per second of both models, taken in alternating rounds."""
    hybrid = braid(position, **HYBRID).to(device())
    peer = llama(LAYERS, hybrid.config.intermediate_size, 2 * position, use_cache=True).eval()
    steps = {
        "braid": (stepper(hybrid, fill_braid(hybrid, position)), 32),
        "llama": (stepper(peer, fill_llama(peer, position)), 4),
    }
    for step, _ in steps.values():
        tokens_per_second(step, 3)
    speeds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, (step, count) in steps.items():
            speeds[name].append(tokens_per_second(step, count, clock))
    medians = {f"{name}_tokens_per_second": statistics.median(values) for name, values in speeds.items()}
    return medians | {"ratio": medians["braid_tokens_per_second"] / medians["llama_tokens_per_second"]}


def measure_cache(position: int) -> dict[str, float]:
    """Bytes of live caches after `position` tokens, and what the mixers state, which `braid plan` prints."""
    found: dict[str, float] = {}
    for name, pattern in (("hybrid", HYBRID), ("all_global", ALL_GLOBAL)):
        model = braid(position, **pattern)
        found[f"{name}_bytes"] = fill_braid(model, position).used_bytes
        stated = sum(mixer.cache_bytes(position, model.dtype) for mixer in model.model.mixers)
        assert stated == found[f"{name}_bytes"], f"{name}: stated {stated}, live {found[f'{name}_bytes']}"
    return found | {"times_smaller": found["all_global_bytes"] / found["hybrid_bytes"]}


@torch.inference_mode()
def main(quick: bool, position: int | None, clock: Clock, save: Save) -> None:
    """Measures at the position (16,384 if none is given; 2,048 if quick), prints the tables and saves the figures."""
    position = position or (2_048 if quick else 16_384)
    rounds = 3 if quick else 9
    with under_way(f"position {position:,}"):
        speed, cache = measure_speed(position, rounds, clock), measure_cache(position)
    threads = torch.get_num_threads()
    print(f"decoding at position {position:,}: tokens/s, median of {rounds} rounds, {threads} threads, {clock.name}")
    print(f"  RAT-16 + local-1024 (Braid)            {speed['braid_tokens_per_second']:9.2f}")
    print(f"  Llama, DynamicCache (transformers)     {speed['llama_tokens_per_second']:9.2f}")
    print(f"  ratio                                  {speed['ratio']:9.2f}")
    print(f"cache after {position:,} tokens: MiB, live caches, equal to what `braid plan` states")
    print(f"  RAT-16 + local-1024                    {cache['hybrid_bytes'] / 2**20:9.2f}")
    print(f"  all global                             {cache['all_global_bytes'] / 2**20:9.2f}")
    print(f"  times smaller                          {cache['times_smaller']:9.2f}")
    save({"decode": {"position": position, "rounds": rounds, **speed, **cache}})
