"""Shifted groups on every backend: one mask, and attention under it, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn.attention import flex_attention as pytorch

from kernels import interval_attention
from kernels.backends import Backend
from kernels.interval_attention import Intervals, flex
from kernels.interval_attention.flash import flash_attention
from kernels.interval_attention.flash_plan import plan_calls
from kernels.interval_attention.flash_reference import PlainVarlen
from lm.extend.attention import attend
from lm.model.documents import Documents
from lm.model.shifted_groups import shifted_visible

from .test_attention import dense_mask

GROUP, HEADS = 8, 6
LENGTHS = (29, 3, 8, 9)  # no multiple of the group, less than half of it, one group, one token more


@pytest.fixture(autouse=True)
def no_preference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("BRAID_ATTENTION_BACKEND", raising=False)
    yield
    interval_attention.prefer(None)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a backend serve every call, flash by the definition of its calls where there is no GPU."""

    def choose(name: str) -> None:
        if name == "flash" and not torch.cuda.is_available():
            plain = Backend(partial(flash_attention, varlen=PlainVarlen))
            monkeypatch.setitem(interval_attention._ATTENTION._backends, "flash", plain)
        elif (state := interval_attention.backends()[name]) != "available":
            pytest.skip(state)
        interval_attention.prefer(name)

    return choose


def leaves(kv_heads: int, dtype: torch.dtype) -> list[Tensor]:
    random, tokens = torch.Generator().manual_seed(0), sum(LENGTHS)
    drawn = (torch.randn(tokens, heads, 16, generator=random) for heads in (HEADS, kv_heads, kv_heads))
    return [x.to(dtype).requires_grad_() for x in drawn]


def evaluate(run: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    out = run(*inputs)
    random = torch.Generator().manual_seed(1)
    return [out, *torch.autograd.grad(out, inputs, torch.randn(out.shape, generator=random).to(out.dtype))]


def by_the_rule(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = dense_mask(list(LENGTHS), GROUP, HEADS, k.shape[1])
    k, v = (x.repeat_interleave(HEADS // x.shape[1], 1).transpose(0, 1) for x in (k, v))
    return torch.nn.functional.scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=mask).transpose(0, 1)


@pytest.mark.parametrize("kv_heads", [1, 2, 3, HEADS])
@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        ("reference", torch.float64),
        ("blocked", torch.float64),
        ("blocked", torch.float32),
        ("blocked", torch.bfloat16),
        ("flash", torch.float32),
        ("flash", torch.bfloat16),
        ("triton", torch.float32),
    ],
)
def test_every_backend_attends_under_the_mask_of_the_rule(
    backend: str, dtype: torch.dtype, kv_heads: int, use: Callable[[str], None]
) -> None:
    use(backend)
    inputs = leaves(kv_heads, dtype)
    documents = Documents.from_lengths(LENGTHS)
    found = evaluate(lambda q, k, v: attend(q, k, v, documents, GROUP), inputs)
    exact = evaluate(by_the_rule, [x.detach().double().requires_grad_() for x in inputs])
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    for ours, truth in zip(found, exact, strict=True):
        assert (ours.double() - truth).abs().max() <= tolerance * truth.abs().max()


@pytest.mark.parametrize("lengths", [(32,), (13, 32, 3, 8, 9, 70)])
def test_blocks_sequences_and_the_rule_are_one_mask(lengths: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "BLOCK", 16)
    documents = Documents.from_lengths(lengths)
    intervals = documents.intervals(shifted_visible(documents, GROUP, 2), documents.tokens())
    rule = dense_mask(list(lengths), GROUP, 2, 2)
    blocks = flex._block_mask(intervals, 1, sum(lengths))
    places = torch.arange(sum(lengths))
    masked = torch.stack([blocks.mask_mod(torch.tensor(0), torch.tensor(h), places[:, None], places) for h in range(2)])
    assert torch.equal(masked, rule)
    assert torch.equal(from_sequences(intervals, sum(lengths)), rule)
    if lengths == (32,):
        assert rule.flatten(1).sum(1).tolist() == [144, 128]


def from_sequences(intervals: Intervals, tokens: int) -> Tensor:
    """[head groups, N, N] bool: the pairs of flash attention's calls, whose queries and keys are here the tokens."""
    masks = []
    for call in plan_calls(intervals, tokens):
        assert call is not None
        assert (call.pack, call.places, call.keys, call.window) == (1, None, None, None)
        borders = call.cu_rows.tolist()
        assert borders == call.cu_keys.tolist()
        lengths = [b - a for a, b in pairwise(borders)]
        assert min(lengths) > 0
        masks.append(torch.block_diag(*(torch.ones(n, n).tril() for n in lengths)).bool())
    return torch.stack(masks)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU flex is compared like the others")
def test_flex_attends_under_the_mask_of_the_rule_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU it has no backward."""
    monkeypatch.setattr(flex, "BLOCK", 16)
    monkeypatch.setattr(pytorch, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    documents = Documents.from_lengths(LENGTHS)
    q, k, v = (x.detach() for x in leaves(2, torch.float32))
    intervals = documents.intervals(shifted_visible(documents, GROUP, 2), documents.tokens())
    out, _ = flex.flex_attention(q, k, v, intervals, 16**-0.5, None, None)
    torch.testing.assert_close(out, by_the_rule(q, k, v), rtol=1e-5, atol=1e-5)
