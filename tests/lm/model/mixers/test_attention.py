"""Global, local and dilated attention, positions, sinks."""

from __future__ import annotations

import pytest
import torch

from lm.model.documents import Documents
from lm.model.mixers import Dimensions, build_mixer
from lm.model.mixers.attention import AttentionOptions

TOKENS = 26
X = torch.randn(TOKENS, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
LENGTHS = [15, 11]
DOCUMENTS = Documents.from_lengths(LENGTHS)
POSITION = torch.cat([torch.arange(length) for length in LENGTHS])
SAME = torch.block_diag(*(torch.ones(length, length) for length in LENGTHS)).bool()
DISTANCE = POSITION[:, None] - POSITION


def mixer_of(seed=0, **options):
    torch.manual_seed(seed)
    mixer = build_mixer(AttentionOptions(**options), Dimensions(16, 4, 2, 4, 100.0, 1e-6))
    mixer.init_weights(0.5)
    return mixer.double()


def dense(mixer, mask):
    q, k, v = mixer.project(X, DOCUMENTS)
    k, v = (t.repeat_interleave(2, 1).transpose(0, 1) for t in (k, v))
    out = torch.nn.functional.scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=mask)
    return mixer.o_proj(out.transpose(0, 1).flatten(1))


@pytest.mark.parametrize("window", [1, 2, 7, 26, None])
@pytest.mark.parametrize("dilation", [1, 2, 5, 40])
def test_a_query_sees_exactly_its_window(window, dilation):
    mixer = mixer_of(window=window, dilation=dilation)
    steps = DISTANCE // dilation
    mask = SAME & (DISTANCE >= 0) & (DISTANCE % dilation == 0) & (steps < (window or TOKENS))
    torch.testing.assert_close(mixer(X, DOCUMENTS), dense(mixer, mask), atol=1e-10, rtol=1e-10)
    assert mixer.scored_pairs(DOCUMENTS) == 4 * int(mask.sum())


@pytest.mark.parametrize("window", [1, 4, None])
@pytest.mark.parametrize("dilation", [1, 3])
def test_reach_is_the_earliest_token_in_the_mask(window, dilation):
    mixer = mixer_of(window=window, dilation=dilation)
    steps = DISTANCE // dilation
    mask = SAME & (DISTANCE >= 0) & (DISTANCE % dilation == 0) & (steps < (window or TOKENS))
    assert torch.equal(mixer.earliest(DOCUMENTS, torch.arange(TOKENS)), mask.int().argmax(1))


def test_stacked_windows_add_up():
    mixer, documents = mixer_of(window=5), Documents.from_lengths([100])
    earliest = torch.arange(100)
    for depth in range(1, 6):
        earliest = mixer.earliest(documents, earliest)
        assert 99 - earliest[-1] == depth * 4


def test_without_positions_the_order_of_the_past_does_not_matter():
    mixer, documents = mixer_of(positions="none"), Documents.from_lengths([TOKENS])
    shuffled = torch.cat((X[:-1][torch.randperm(TOKENS - 1)], X[-1:]))
    torch.testing.assert_close(mixer(X, documents)[-1], mixer(shuffled, documents)[-1], atol=1e-12, rtol=1e-12)


def test_rotary_positions_are_relative():
    mixer = mixer_of()
    shifted = Documents.from_lengths([TOKENS], past=[1000])
    q, k, _ = mixer.project(X, Documents.from_lengths([TOKENS]))
    q_shifted, k_shifted, _ = mixer.project(X, shifted)
    scores, moved = (
        torch.einsum("qhd,khd->hqk", a, b.repeat_interleave(2, 1)) for a, b in ((q, k), (q_shifted, k_shifted))
    )
    torch.testing.assert_close(scores, moved, atol=1e-10, rtol=1e-10)


def test_the_window_base_overrides_the_models():
    assert (mixer_of(rope_theta=1e6)(X, DOCUMENTS) - mixer_of()(X, DOCUMENTS)).abs().max() > 1e-4


def test_a_sink_takes_weight_and_gives_nothing():
    plain, sinking = mixer_of(), mixer_of(sink=True)
    sinking.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        sinking.sink.logit.fill_(-torch.inf)
    torch.testing.assert_close(sinking(X, DOCUMENTS), plain(X, DOCUMENTS), atol=1e-12, rtol=1e-12)
    with torch.no_grad():
        sinking.sink.logit.copy_(torch.tensor([0.3, -1.0, 2.0, 0.0]))
    q, k, v = sinking.project(X, DOCUMENTS)
    scores = torch.einsum("qhd,khd->hqk", q, k.repeat_interleave(2, 1)) / 2
    scores = scores.masked_fill(~(SAME & (DISTANCE >= 0)), -torch.inf)
    with_sink = torch.cat((scores, sinking.sink.logit.detach()[:, None, None].expand(4, TOKENS, 1)), -1)
    weights = with_sink.softmax(-1)[..., :-1]
    expected = sinking.o_proj(torch.einsum("hqk,khd->qhd", weights, v.repeat_interleave(2, 1)).flatten(1))
    torch.testing.assert_close(sinking(X, DOCUMENTS), expected, atol=1e-10, rtol=1e-10)
