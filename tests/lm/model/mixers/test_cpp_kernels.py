"""A model of every mixer on the C++ kernels is the one on plain PyTorch: packed documents, grouped queries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.gated_scan import scan_calls
from kernels.interval_attention import attention_calls, default
from lm.model.decoder import LanguageModel
from lm.model.documents import Documents
from lm.model.options import ModelOptions

OPTIONS = {
    "vocab_size": 50,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "mixers": {
        "rat": {"kind": "rat", "chunk_size": 5},
        "local": {"kind": "attention", "window": 7, "sink": True},
        "dilated": {"kind": "attention", "window": 5, "dilation": 2},
        "ls": {"kind": "long_short", "short_heads": 2, "window": 3},
        "s2": {"kind": "shifted_short", "group_size": 8},
        "global": {"kind": "attention"},
    },
    "layers": "rat local dilated ls s2 global",
}


def loss_and_gradients() -> list[Tensor]:
    torch.manual_seed(0)
    model = LanguageModel(ModelOptions.model_validate(OPTIONS)).train()
    tokens = torch.randint(50, (200,))
    found = model(tokens, Documents.from_lengths([1, 70, 129]), tokens.roll(-1))
    found.loss.backward()
    return [found.token_nll, *(parameter.grad for parameter in model.parameters())]


def test_a_model_of_every_mixer(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    plain = loss_and_gradients()
    request.getfixturevalue("cpp_kernels")
    assert default("cpu") == "cpp"
    calls: list[object] = []
    with attention_calls.shown_to(lambda *call: calls.append(call)), scan_calls.shown_to(lambda *c: calls.append(c)):
        fast = loss_and_gradients()
    assert len(calls) == 7
    assert any(not a.equal(b) for a, b in zip(fast, plain, strict=True))
    for a, b in zip(fast, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
