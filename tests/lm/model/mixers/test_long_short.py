"""Long-short heads: the identities of LS-attention."""

from __future__ import annotations

import pytest
import torch

from lm.model.documents import Documents
from lm.model.mixers import Dimensions, build_mixer
from lm.model.mixers.attention import AttentionOptions
from lm.model.mixers.long_short import LongShortOptions

X = torch.randn(30, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
DOCUMENTS = Documents.from_lengths([19, 11])


def mixer_of(options, kv_heads=4, seed=0):
    torch.manual_seed(seed)
    mixer = build_mixer(options, Dimensions(16, 4, kv_heads, 4, 100.0, 1e-6))
    mixer.init_weights(0.5)
    return mixer.double()


def assert_same(a, b):
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(X, DOCUMENTS), b(X, DOCUMENTS))


def test_a_window_over_everything_is_global_attention():
    short, full = mixer_of(LongShortOptions(short_heads=3, window=30)), mixer_of(AttentionOptions())
    full.load_state_dict(short.state_dict())
    torch.testing.assert_close(short(X, DOCUMENTS), full(X, DOCUMENTS), atol=1e-12, rtol=1e-12)


def test_no_short_heads_is_global_attention():
    assert_same(mixer_of(LongShortOptions(short_heads=0, window=1)), mixer_of(AttentionOptions()))


def test_only_short_heads_is_local_attention():
    assert_same(mixer_of(LongShortOptions(short_heads=4, window=5)), mixer_of(AttentionOptions(window=5)))


def test_a_window_of_one_returns_the_own_value():
    mixer = mixer_of(LongShortOptions(short_heads=4, window=1))
    torch.testing.assert_close(mixer(X, DOCUMENTS), mixer.o_proj(mixer.v_proj(X)), atol=1e-12, rtol=1e-12)


def test_short_heads_do_not_see_past_their_window():
    mixer = mixer_of(LongShortOptions(short_heads=4, window=6))
    x = X[:19].clone().requires_grad_(True)
    documents = Documents.from_lengths([19])
    for t in range(19):
        (grad,) = torch.autograd.grad(mixer(x, documents)[t].sum(), x)
        seen = grad.abs().sum(-1) > 0
        assert seen.nonzero().flatten().tolist() == list(range(max(0, t - 5), t + 1))


def test_permuting_short_heads_with_their_output_rows_changes_nothing():
    mixer = mixer_of(LongShortOptions(short_heads=2, window=4))
    before = mixer(X, DOCUMENTS)
    order = torch.tensor([1, 0, 3, 2])
    with torch.no_grad():
        for projection in (mixer.q_proj, mixer.k_proj, mixer.v_proj):
            projection.weight.copy_(projection.weight.view(4, 4, 16)[order].view(16, 16))
        mixer.o_proj.weight.copy_(mixer.o_proj.weight.view(16, 4, 4)[:, order].reshape(16, 16))
    torch.testing.assert_close(mixer(X, DOCUMENTS), before, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_first_heads_are_the_short_ones(kv_heads):
    mixers = [
        mixer_of(options, kv_heads)
        for options in (LongShortOptions(short_heads=2, window=4), AttentionOptions(window=4), AttentionOptions())
    ]
    for mixer in mixers:
        mixer.load_state_dict(mixers[0].state_dict())
        torch.nn.init.eye_(mixer.o_proj.weight)
    both, local, full = (mixer(X, DOCUMENTS) for mixer in mixers)
    torch.testing.assert_close(both, torch.cat((local[:, :8], full[:, 8:]), dim=1), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("short_heads", "kv_heads", "message"), [(5, 4, "exceeds"), (1, 2, "multiple of 2")])
def test_splits_that_cannot_work_are_refused(short_heads, kv_heads, message):
    with pytest.raises(ValueError, match=message):
        LongShortOptions(short_heads=short_heads, window=4).check(Dimensions(16, 4, kv_heads, 4, 100.0, 1e-6))
