"""A step of decoding allocates as much after 4,000 tokens as after 2,000: caches grow in place."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from lm.model.decoder import LanguageModel
from lm.model.documents import Documents
from lm.model.options import ModelOptions

MIXERS = {
    "rat": {"kind": "rat", "chunk_size": 4},
    "local": {"kind": "attention", "window": 64},
    "global": {"kind": "attention"},
    "sink": {"kind": "attention", "sink": True},
    "dilated": {"kind": "attention", "dilation": 4, "sink": True},
    "ls": {"kind": "long_short", "short_heads": 2, "window": 16},
    "s2": {"kind": "shifted_short", "group_size": 8},
}


@torch.inference_mode()
def allocated(model: LanguageModel, tokens: int, rows: int = 1) -> int:
    """Bytes that one step of `rows` tokens allocates in all, after as many tokens."""
    cache = model.model.new_cache(rows, torch.float32, torch.device("cpu"))
    model(torch.ones(rows * tokens, dtype=torch.int64), Documents.from_lengths([tokens] * rows), cache=cache)

    def step() -> None:
        model(torch.ones(rows, dtype=torch.int64), Documents.from_lengths([1] * rows, cache.seen), cache=cache)

    for _ in range(4):  # the cache doubles when it is full
        step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    return sum(max(0, event.self_cpu_memory_usage) for event in profiler.events())


@pytest.mark.parametrize("name", MIXERS)
def test_a_step_allocates_nothing_that_grows(name: str) -> None:
    torch.manual_seed(0)
    options = {"vocab_size": 50, "hidden_size": 64, "num_attention_heads": 4, "mixers": MIXERS, "layers": f"{name}*2"}
    model = LanguageModel(ModelOptions.model_validate({**options, "mixers": {name: MIXERS[name]}})).eval()
    few, many = allocated(model, 2101), allocated(model, 4101)  # blocks of attention are full in both
    assert 0 < many < 1.02 * few
