"""Shifted-short attention sees what LongLoRA's groups allow, and nothing of the future."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.model.documents import Documents
from lm.model.mixers import Dimensions, build_mixer
from lm.model.mixers.attention import AttentionOptions
from lm.model.mixers.shifted_short import ShiftedShortOptions


def mixer_of(options, kv_heads=2, heads=4, seed=0):
    torch.manual_seed(seed)
    mixer = build_mixer(options, Dimensions(16, heads, kv_heads, 4, 100.0, 1e-6)).double()
    mixer.init_weights(0.5)
    return mixer.double()


def allowed(mixer, lengths):
    """[head groups, N, N] bool: the pairs that the mixer's intervals allow."""
    documents = Documents.from_lengths(lengths)
    intervals = documents.intervals(mixer.visible(documents), documents.tokens())
    key = torch.arange(sum(lengths))
    return (intervals.start[..., None] <= key) & (key < intervals.end[:, None])


def by_rule(group, lengths, shift):
    """Same document, not later, same segment floor((position + shift) / group)."""
    document = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    position = torch.cat([torch.arange(length) for length in lengths])
    long = torch.tensor(lengths)[document] > group
    segment = (position + torch.where(long, shift, 0)) // group
    segment = torch.where(long, segment, 0)
    return (document[:, None] == document) & (position <= position[:, None]) & (segment[:, None] == segment)


@settings(deadline=None, max_examples=40)
@given(half=st.integers(1, 9), lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_pairs_follow_the_rule(half, lengths):
    unshifted, shifted = allowed(mixer_of(ShiftedShortOptions(group_size=2 * half)), lengths)
    assert torch.equal(unshifted, by_rule(2 * half, lengths, 0))
    assert torch.equal(shifted, by_rule(2 * half, lengths, half))


@pytest.mark.parametrize(("tokens", "group"), [(32, 8), (64, 16), (40, 4)])
def test_pair_counts(tokens, group):
    mixer = mixer_of(ShiftedShortOptions(group_size=group))
    unshifted, shifted = (int(mask.sum()) for mask in allowed(mixer, [tokens]))
    assert unshifted == tokens * (group + 1) // 2
    assert shifted == (tokens - group) * (group + 1) // 2 + group // 2 * (group // 2 + 1)
    assert mixer.scored_pairs(Documents.from_lengths([tokens])) == 2 * (unshifted + shifted)


def test_stacked_layers_reach_the_first_token_only_when_deep_enough():
    tokens, group = 32, 8
    mixer, documents = mixer_of(ShiftedShortOptions(group_size=group)), Documents.from_lengths([32])
    earliest = torch.arange(tokens)
    depth = 0
    while earliest[-1] > 0:
        earliest = mixer.earliest(documents, earliest)
        depth += 1
    assert depth == 2 * tokens // group - 1


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_equals_dense_attention_under_its_mask(kv_heads):
    heads, tokens, group = 6, 21, 8
    mixer = mixer_of(ShiftedShortOptions(group_size=group), kv_heads, heads)
    x, documents = torch.randn(tokens, 16, dtype=torch.float64), Documents.from_lengths([13, 8])
    q, k, v = mixer.project(x, documents)
    k, v = (t.repeat_interleave(heads // kv_heads, 1).transpose(0, 1) for t in (k, v))
    first_half = torch.arange(heads) < (kv_heads // 2 * (heads // kv_heads) if kv_heads % 2 == 0 else heads // 2)
    mask = torch.where(first_half[:, None, None], by_rule(group, [13, 8], 0), by_rule(group, [13, 8], group // 2))
    dense = torch.nn.functional.scaled_dot_product_attention(q.transpose(0, 1), k, v, attn_mask=mask)
    expected = mixer.o_proj(dense.transpose(0, 1).flatten(1))
    torch.testing.assert_close(mixer(x, documents), expected, atol=1e-10, rtol=1e-10)


def test_evaluation_is_full_attention():
    x, documents = torch.randn(21, 16, dtype=torch.float64), Documents.from_lengths([13, 8])
    short, full = mixer_of(ShiftedShortOptions(group_size=4)), mixer_of(AttentionOptions())
    full.load_state_dict(short.state_dict())
    assert (short(x, documents) - full(x, documents)).abs().max() > 1e-3
    torch.testing.assert_close(short.eval()(x, documents), full(x, documents), atol=1e-12, rtol=1e-12)


def test_a_document_that_fits_a_group_is_not_cut():
    x, documents = torch.randn(16, 16, dtype=torch.float64), Documents.from_lengths([8, 5, 3])
    short, full = mixer_of(ShiftedShortOptions(group_size=8)), mixer_of(AttentionOptions())
    full.load_state_dict(short.state_dict())
    torch.testing.assert_close(short(x, documents), full(x, documents), atol=1e-12, rtol=1e-12)


def test_an_odd_group_is_refused():
    with pytest.raises(ValueError, match="even"):
        ShiftedShortOptions(group_size=7)
