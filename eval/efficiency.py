"""What a context costs at each length: speed of reading and writing, bytes of the cache, peak memory."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from eval.model import Model
from lm.train.memory import release_freed_memory

WARM_UP_TOKENS = 32
DECODE_STEPS = 16
PREFILL_SECONDS, PREFILL_ROUNDS = 2.0, 3
CACHES = ("past_key_values", "cache_params", "state")
"""What transformers calls a cache, in a model's input and output: attention's, Mamba's and xLSTM's, RWKV's."""


@dataclass(frozen=True)
class Efficiency:
    """One row of `length` tokens, and the steps after it.

    prefill_tokens_per_second: of the fastest of a few prefills. decode_tokens_per_second: of the median step.
    cache_bytes: tensors of the cache at the end. peak_bytes: most memory in use meanwhile, weights included: of
    the GPU, or resident of the process; None where the system does not say.
    """

    length: int
    prefill_tokens_per_second: float
    decode_tokens_per_second: float
    cache_bytes: int
    peak_bytes: int | None


class NoCacheError(ValueError):
    """A model hands out no cache, so that neither its size nor single steps can be measured."""


@torch.inference_mode()
def efficiency(model: Model, length: int) -> Efficiency:
    """Reads random tokens, then writes the last `DECODE_STEPS` of `length` (at least one of each) in single steps.

    Raises NoCacheError.
    """
    network, device = model.model, model.device
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(network.forward).parameters else {}
    count, vocabulary = max(1, length - DECODE_STEPS), network.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (1, count), generator=torch.Generator().manual_seed(0)).to(device)

    def forward(tokens: Tensor, **cache: Any) -> Any:
        return network(input_ids=tokens, use_cache=True, **last_only, **cache)

    name = _cache_name(model, forward(ids[:, :WARM_UP_TOKENS]))

    def read(tokens: Tensor, cache: Any = None) -> Any:
        return getattr(forward(tokens, **({} if cache is None else {name: cache})), name)

    _decode(read, ids[:, :WARM_UP_TOKENS], read(ids[:, :WARM_UP_TOKENS]), device, steps=2)
    noted = _reset_peak(device)
    times: list[float] = []
    while not times or (sum(times) < PREFILL_SECONDS and len(times) < PREFILL_ROUNDS):
        cache = None  # the one before is not to stand beside it
        seconds, cache = _timed(partial(read, ids, None), device)
        times.append(seconds)
    steps = _decode(read, ids, cache, device, DECODE_STEPS)
    peak = _peak(device) if noted else None
    return Efficiency(length, count / min(times), 1 / median(steps), cache_bytes(cache), peak)


def _cache_name(model: Model, output: Any) -> str:
    for name in CACHES:
        if getattr(output, name, None) is not None:
            return name
    raise NoCacheError(f"{model.name} hands out no cache, so what it costs to write on from one is not known")


def _decode(
    read: Callable[[Tensor, Any], Any], ids: Tensor, cache: Any, device: torch.device, steps: int
) -> list[float]:
    """Seconds of each step of one token."""
    times = []
    for step in range(steps):
        token = ids[:, step % ids.shape[1], None]
        seconds, cache = _timed(partial(read, token, cache), device)
        times.append(seconds)
    return times


def _timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    _wait(device)
    begin = time.perf_counter()
    result = work()
    _wait(device)
    return time.perf_counter() - begin, result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cache_bytes(cache: Any) -> int:
    """Bytes that a cache keeps: as it states them itself, or those of every tensor in it."""
    stated = getattr(cache, "used_bytes", None)
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(cache)) if stated is None else int(stated)


def _tensors(cache: Any) -> Iterator[Tensor]:
    """Every tensor that is reached through containers and transformers' own objects, once."""
    seen: dict[int, Any] = {}
    todo = [cache]
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen[id(thing)] = thing
        if isinstance(thing, Tensor):
            yield thing
        elif isinstance(thing, list | tuple):
            todo += thing
        elif isinstance(thing, dict):
            todo += thing.values()
        elif type(thing).__module__.startswith("transformers."):
            todo += vars(thing).values()


def _reset_peak(device: torch.device) -> bool:
    """Begins to note the peak anew; False where the system cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    release_freed_memory()  # or what earlier work held would count
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux's high-water mark of resident memory
    except OSError:
        return False
    return True


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    (kibibytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kibibytes) * 1024
