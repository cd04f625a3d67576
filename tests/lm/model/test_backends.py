"""A model of all mixers gives the same loss and gradients on every backend that serves it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from kernels import gated_scan, interval_attention
from kernels.backends import Backend
from kernels.interval_attention.flash import flash_attention
from kernels.interval_attention.flash_reference import PlainVarlen
from lm.model.decoder import LanguageModel
from lm.model.documents import Documents
from lm.model.options import ModelOptions

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OPTIONS = ModelOptions.model_validate(
    {
        "vocab_size": 50,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "mixers": {
            "rat": {"kind": "rat", "chunk_size": 4},
            "sinks": {"kind": "attention", "window": 8, "sink": True},
            "dilated": {"kind": "attention", "window": 4, "dilation": 3},
            "ls": {"kind": "long_short", "short_heads": 2, "window": 4},
            "s2": {"kind": "shifted_short", "group_size": 8},
            "global": {"kind": "attention"},
        },
        "layers": "rat sinks dilated ls s2 global",
    }
)


@pytest.fixture(autouse=True)
def no_preference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for variable in ("BRAID_ATTENTION_BACKEND", "BRAID_SCAN_BACKEND"):
        monkeypatch.delenv(variable, raising=False)
    yield
    interval_attention.prefer(None)
    gated_scan.prefer(None)


def loss_and_gradients(attention: str, scan: str) -> list[Tensor]:
    interval_attention.prefer(attention)
    gated_scan.prefer(scan)
    torch.manual_seed(0)
    model = LanguageModel(OPTIONS).to(DEVICE).train()
    tokens, targets = torch.randint(0, OPTIONS.vocab_size, (2, 30)).to(DEVICE)
    loss = model(tokens, Documents.from_lengths([20, 1, 9], device=DEVICE), targets).loss
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


def test_triton() -> None:
    if interval_attention.backends()["triton"] != "available":
        pytest.skip(interval_attention.backends()["triton"])
    for ours, truth in zip(loss_and_gradients("triton", "triton"), loss_and_gradients("blocked", "loop"), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(DEVICE == "cuda", reason="the definition of flash attention's calls is for the CPU")
def test_flash_serves_the_intervals_of_every_mixer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls made by their definition, since the kernel itself needs a GPU."""
    plain = Backend(partial(flash_attention, varlen=PlainVarlen))
    monkeypatch.setitem(interval_attention._ATTENTION._backends, "flash", plain)
    for ours, truth in zip(loss_and_gradients("flash", "loop"), loss_and_gradients("blocked", "loop"), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-4, atol=1e-5)
