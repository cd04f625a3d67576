"""The short convolution against its formula, token by token; its documents are islands in both directions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.model.cache import MixerCache
from lm.model.documents import Documents
from lm.model.short_conv import ShortConvolution

HIDDEN = 3
WIDTHS = st.integers(2, 6)
LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any)


def convolution(width, dtype=torch.float64):
    module = ShortConvolution(HIDDEN, width)
    torch.nn.init.normal_(module.weight, generator=torch.Generator().manual_seed(0))
    return module.to(dtype)


def inputs(tokens, seed=0):
    return torch.randn(tokens, HIDDEN, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_the_formula(module, x):
    """One document, written as sums over single tokens."""
    return torch.stack(
        [x[t] + sum(module.weight[j] * x[t - j] for j in range(len(module.weight)) if j <= t) for t in range(len(x))]
    )


@settings(deadline=None, max_examples=40)
@given(WIDTHS, LENGTHS)
def test_every_document_is_convolved_by_itself(width, lengths):
    module, x = convolution(width), inputs(sum(lengths)).requires_grad_()
    out = module(x, Documents.from_lengths(lengths))
    expected = torch.cat([by_the_formula(module, piece) for piece in x.split(lengths) if len(piece)])
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=1e-12)
    probe = inputs(sum(lengths), seed=1)
    leaves = (x, module.weight)
    for found, wanted in zip(
        torch.autograd.grad((out * probe).sum(), leaves),
        torch.autograd.grad((expected * probe).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("width", [2, 4, 9])
def test_gradients_reach_exactly_the_tokens_it_sees(width):
    module, lengths = convolution(width), [5, 1, 11]
    x = inputs(sum(lengths)).requires_grad_()
    documents = Documents.from_lengths(lengths)
    out = module(x, documents)
    below = module.earliest(documents, torch.arange(sum(lengths)))
    for t in range(len(x)):
        (grad,) = torch.autograd.grad(out[t].sum(), x, retain_graph=True)
        assert grad.abs().sum(1).nonzero().flatten().tolist() == list(range(int(below[t]), t + 1))
        assert t - int(below[t]) == min(width - 1, int(documents.position[t]))


@settings(deadline=None, max_examples=40)
@given(WIDTHS, st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=6))
def test_pieces_from_a_cache_are_the_whole(width, pieces):
    module = convolution(width)
    lengths = [sum(counts) for counts in zip(*pieces, strict=True)]
    rows = [inputs(length, seed) for seed, length in enumerate(lengths)]
    cache, past = MixerCache(), [0, 0, 0]
    module.extend_cache(cache, 3, torch.float64, torch.device("cpu"))
    assert cache.used_bytes == 3 * module.cache_bytes(torch.float64) == 3 * (width - 1) * HIDDEN * 8
    outputs = [[], [], []]
    for counts in pieces:
        x = torch.cat([row[p : p + count] for row, p, count in zip(rows, past, counts, strict=True)])
        out = module(x, Documents.from_lengths(counts, past), cache)
        for row, piece in enumerate(out.split(counts)):
            outputs[row].append(piece)
        past = [p + count for p, count in zip(past, counts, strict=True)]
    for row, length in enumerate(lengths):
        whole = module(rows[row], Documents.from_lengths([length]))
        torch.testing.assert_close(torch.cat(outputs[row]), whole, atol=1e-12, rtol=1e-12)


def test_weights_of_zero_change_nothing():
    x = inputs(7)
    assert torch.equal(ShortConvolution(HIDDEN, 4).double()(x, Documents.from_lengths([4, 3])), x)


def test_bfloat16_is_summed_in_float32():
    module, x = convolution(6, torch.bfloat16), inputs(50).bfloat16()
    documents = Documents.from_lengths([50])
    exact = module.double()(x.double(), documents) - x.double()
    assert torch.equal(module.bfloat16()(x, documents), x + exact.float().bfloat16())
