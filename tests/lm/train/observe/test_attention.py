"""The figures of a call, against the definition of interval attention's weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.interval_attention import Intervals
from kernels.interval_attention.reference import visible
from lm.train.observe import attention
from lm.train.observe.attention import head_groups, labels, sample_of


def by_definition(
    q: Tensor, k: Tensor, intervals: Intervals, scale: float, extra: Tensor | None, sample: Tensor
) -> tuple[Tensor, Tensor]:
    """([Q, H] largest |score| of a key, [Q, H] entropy), query by query; nan where nothing is seen."""
    seen = visible(intervals, len(k))
    repeats = q.shape[1] // k.shape[1]
    largest, entropy = torch.zeros(len(sample), q.shape[1]), torch.full((len(sample), q.shape[1]), torch.nan)
    for row, query in enumerate(sample.tolist()):
        for head in range(q.shape[1]):
            keys = k[seen[head // repeats, query], head // repeats]
            scores = keys @ q[query, head] * scale
            largest[row, head] = scores.abs().max() if len(scores) else 0.0
            if extra is not None:
                scores = torch.cat((scores, extra[query, head, None]))
            if len(scores):
                entropy[row, head] = torch.distributions.Categorical(logits=scores).entropy()
    return largest, entropy


@given(
    tokens=st.integers(1, 40),
    window=st.integers(0, 12),
    queries=st.integers(1, 50),
    repeats=st.integers(1, 2),
    extra=st.sampled_from(["none", "key", "sink"]),
    at_once=st.sampled_from([1, 2**24]),
    no_keys=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_figures_are_those_of_the_softmax(
    tokens: int, window: int, queries: int, repeats: int, extra: str, at_once: int, no_keys: bool
) -> None:
    generator = torch.Generator().manual_seed(tokens)
    q = torch.randn(tokens, 3 * repeats, 4, generator=generator)
    k = torch.randn(0 if no_keys else tokens, 3, 4, generator=generator)
    score = None if extra == "none" else 5 * torch.randn(tokens, 3 * repeats, generator=generator)
    end = torch.arange(tokens) * (not no_keys)  # the first query sees nothing
    intervals = Intervals(torch.stack((torch.zeros_like(end), (end - window).clamp(min=0))), end, (1, 2))
    sample = sample_of(tokens, queries, q.device)

    largest, entropy = by_definition(q, k, intervals, 0.7, score, sample)
    if extra == "key":
        largest = torch.maximum(largest, score[sample].abs())
    before, attention.SCORES_AT_ONCE = attention.SCORES_AT_ONCE, at_once
    groups = head_groups(q, k, intervals, 0.7, score, extra == "key", sample)
    attention.SCORES_AT_ONCE = before

    assert [label for label, _ in labels(groups)] == [f"/0-{repeats - 1}", f"/{repeats}-{3 * repeats - 1}"]
    for group in groups:
        of_group = entropy[:, group.first : group.end]
        rows = ~of_group.isnan()
        torch.testing.assert_close(group.largest, largest[:, group.first : group.end].max())
        torch.testing.assert_close(group.entropy, torch.stack((of_group[rows].sum(), rows.sum())), atol=1e-4, rtol=1e-4)


@given(tokens=st.integers(1, 5000), queries=st.integers(1, 100))
@settings(deadline=None)
def test_a_sample_spreads_over_the_stream(tokens: int, queries: int) -> None:
    sample = sample_of(tokens, queries, torch.device("cpu"))
    count = min(tokens, queries)
    assert sample.shape == (count,)
    parts = torch.arange(count + 1) * tokens / count
    assert bool((sample >= parts[:-1].floor()).all())
    assert bool((sample < parts[1:].ceil()).all())


@pytest.mark.parametrize("rhythm", [8, 16, 64, 100])
def test_a_sample_has_no_rhythm_in_common_with_chunks(rhythm: int) -> None:
    places = sample_of(4096, 32, torch.device("cpu")) % rhythm
    assert len(places.unique()) >= min(rhythm, 32) // 2
