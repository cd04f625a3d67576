"""RAT against its definition, and against the closed forms its special cases have."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.gated_scan import Chunks, gated_scan
from lm.model.documents import Documents
from lm.model.mixers import Dimensions
from lm.model.mixers.rat import Rat, RatOptions
from lm.model.rope import rope_table, rotate

HEADS, HEAD_DIM = 4, 8
WIDTH = HEADS * HEAD_DIM


def new_rat(chunk_size, qk_groups=2, seed=0, **options):
    torch.manual_seed(seed)
    dimensions = Dimensions(WIDTH, HEADS, HEADS, HEAD_DIM, rope_theta=50.0, rms_norm_eps=1e-6)
    mixer = Rat(RatOptions(chunk_size=chunk_size, qk_groups=qk_groups, **options), dimensions)
    mixer.init_weights(0.3)
    return mixer.double()


def hidden(tokens, seed=1):
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def documents(tokens):
    return Documents.from_lengths([tokens])


def projections(mixer, x: Tensor):
    """q, k, v, gate per head [T, heads, head_dim] and the output gate [T, width]."""
    groups = mixer.options.qk_groups
    q, k = (
        torch.stack([proj(x).view(-1, groups, HEAD_DIM)[:, h % groups] for h in range(HEADS)], 1)
        for proj in (mixer.q_proj, mixer.k_proj)
    )
    v = mixer.v_proj(x).view(-1, HEADS, HEAD_DIM)
    gate = torch.sigmoid(mixer.forget_proj(x)).view(-1, HEADS, HEAD_DIM)
    return q, k, v, gate, torch.sigmoid(mixer.output_gate_proj(x))


def by_definition(mixer, x: Tensor) -> Tensor:
    """Two loops over tokens, straight from the formulas."""
    size = mixer.options.chunk_size
    q, k, v, gate, z = projections(mixer, x)
    finals, rows = [], []
    state_k = state_v = torch.zeros(HEADS, HEAD_DIM, dtype=x.dtype)
    for t in range(len(x)):
        chunk, offset = divmod(t, size)
        if offset == 0:
            state_k = state_v = torch.zeros_like(state_k)
        state_k = gate[t] * state_k + (1 - gate[t]) * k[t]
        state_v = gate[t] * state_v + (1 - gate[t]) * v[t]
        keys = [angle(key, index) for index, (key, _) in enumerate(finals)] + [angle(state_k, chunk)]
        values = [value for _, value in finals] + [state_v]
        scores = torch.stack([(angle(q[t], chunk) * key).sum(-1) for key in keys]) / math.sqrt(HEAD_DIM)
        rows.append((scores.softmax(0)[..., None] * torch.stack(values)).sum(0).flatten())
        if offset == size - 1:
            finals.append((state_k, state_v))
    return mixer.o_proj(z * torch.stack(rows))


def angle(x: Tensor, index: int) -> Tensor:
    return rotate(x[None], rope_table(torch.tensor([index]), HEAD_DIM, 50.0, torch.float64))[0]


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@settings(deadline=None, max_examples=25)
@given(tokens=st.integers(1, 40), chunk_size=st.integers(1, 45), qk_groups=st.sampled_from([1, 2, 4]))
def test_equals_its_definition(tokens, chunk_size, qk_groups):  # oracles 1 and 13
    mixer = new_rat(chunk_size, qk_groups)
    close(mixer(hidden(tokens), documents(tokens)), by_definition(mixer, hidden(tokens)))


def with_gates(mixer, logit):
    """The same mixer with every gate at sigmoid(logit), whatever the input."""
    torch.nn.init.zeros_(mixer.forget_proj.weight)
    torch.nn.init.constant_(mixer.forget_proj.bias, logit)
    return mixer


def causal_attention(mixer, x, scale=None):
    q, k, v, gate, z = projections(mixer, x)
    scale = 1.0 if scale is None else scale(gate)
    table = rope_table(torch.arange(len(x)), HEAD_DIM, 50.0, torch.float64)
    q, k, v = (t.transpose(0, 1) for t in (rotate(q, table), rotate(scale * k, table), scale * v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return mixer.o_proj(z * out.transpose(0, 1).flatten(1))


def test_chunks_of_one_are_gated_attention():  # oracle 3
    x = hidden(17)
    forgetting = with_gates(new_rat(1), -1e4)
    close(forgetting(x, documents(17)), causal_attention(forgetting, x))
    gated = new_rat(1)
    close(gated(x, documents(17)), causal_attention(gated, x, lambda gate: 1 - gate))


@pytest.mark.parametrize("chunk_size", [13, 14, 1000])
def test_one_chunk_is_an_average_that_no_query_touches(chunk_size):  # oracle 4
    mixer, x = new_rat(chunk_size), hidden(13)
    _, _, v, gate, z = projections(mixer, x)
    (average,) = gated_scan(gate, (v,), Chunks(torch.tensor([0, 13])))
    out = mixer(x, documents(13))
    close(out, mixer.o_proj(z * average.flatten(1)))
    out.sum().backward()
    assert mixer.q_proj.weight.grad.abs().max() == 0
    assert mixer.k_proj.weight.grad.abs().max() == 0


def test_without_forgetting_gates_finals_are_the_last_tokens():  # oracle 5
    size, tokens = 4, 19
    mixer, x = with_gates(new_rat(size), -1e4), hidden(tokens)
    q, k, v, _, z = projections(mixer, x)
    index = torch.arange(tokens)
    table = rope_table(index // size, HEAD_DIM, 50.0, torch.float64)
    mask = torch.eye(tokens, dtype=torch.bool) | (
        ((index + 1) % size == 0)[None] & (index[None] // size < index[:, None] // size)
    )
    q, k, v = (t.transpose(0, 1) for t in (rotate(q, table), rotate(k, table), v))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    close(mixer(x, documents(tokens)), mixer.o_proj(z * out.transpose(0, 1).flatten(1)))


def attended(gate, v, size, q=None, k=None):
    """The core alone: [T, heads, head_dim] from gates and values, uniform scores unless q and k are given."""
    mixer = new_rat(size, qk_groups=HEADS)
    q = torch.zeros_like(v) if q is None else q
    k = torch.zeros_like(v) if k is None else k
    return mixer.attend(q, k, v, gate, documents(len(v)))


def test_equal_scores_average_chunk_means_and_the_running_mean():  # oracle 6
    size, tokens = 4, 18
    v = hidden(tokens).view(tokens, HEADS, HEAD_DIM)
    offset = torch.arange(tokens).double() % size
    gate = (offset / (offset + 1))[:, None, None].expand_as(v)
    out = attended(gate, v, size)
    for t in range(tokens):
        chunks = [v[c * size : min((c + 1) * size, t + 1)].mean(0) for c in range(t // size + 1)]
        close(out[t], torch.stack(chunks).mean(0))


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9])
def test_constant_gates_and_values_have_a_closed_form(gamma):  # oracle 7
    size, tokens = 5, 23
    v = torch.ones(tokens, HEADS, HEAD_DIM, dtype=torch.float64)
    out = attended(torch.full_like(v, gamma), v, size)
    t = torch.arange(tokens, dtype=torch.float64)
    chunk, offset = t.div(size, rounding_mode="floor"), t % size
    expected = (chunk * (1 - gamma**size) + (1 - gamma ** (offset + 1))) / (chunk + 1)
    close(out, expected[:, None, None].expand_as(out))


def test_a_later_input_changes_no_earlier_output():  # oracle 8
    mixer, x = new_rat(4), hidden(18)
    before = mixer(x, documents(18))
    for t in range(18):
        changed = torch.cat((x[:t], hidden(18, seed=9)[t:]))
        assert torch.equal(mixer(changed, documents(18))[:t], before[:t])


def test_a_chunk_begins_afresh_and_its_end_counts_once():  # oracle 9
    size = 4
    v = hidden(2 * size).view(-1, HEADS, HEAD_DIM)
    gate = torch.full_like(v, 0.7)
    no_past = torch.ones_like(v)
    far = torch.cat((-1e6 * no_past[:size], no_past[size:]))  # finished chunks score hugely negative
    angle_free = new_rat(size, qk_groups=HEADS, positions="none")
    out = angle_free.attend(no_past, far, v, gate, documents(2 * size))
    close(out[size], 0.3 * v[size])
    ones = attended(torch.zeros_like(v), torch.arange(2 * size).double()[:, None, None].expand_as(v), size)
    close(ones[-1], torch.full_like(ones[-1], (size - 1 + 2 * size - 1) / 2))  # two entries, not three


def test_the_first_chunk_ignores_scores_and_has_finite_gradients():  # oracle 10
    mixer, x = new_rat(8), hidden(8).requires_grad_(True)
    _, _, v, gate, z = projections(mixer, x)
    out = mixer(x, documents(8))
    close(out, mixer.o_proj(z * gated_scan(gate, (v,), Chunks(torch.tensor([0, 8])))[0].flatten(1)))
    out.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_gradients_of_the_whole_mixer():  # oracle 11
    mixer = new_rat(4)
    assert torch.autograd.gradcheck(lambda x: mixer(x, documents(11)), hidden(11).requires_grad_(True))


def test_only_distances_between_chunks_matter():  # oracle 12
    q, keys = hidden(1).view(1, HEADS, HEAD_DIM), hidden(6, 3).view(6, HEADS, HEAD_DIM)

    def scores(shift):
        rotated = rotate(keys, rope_table(torch.arange(6) + shift, HEAD_DIM, 50.0, torch.float64))
        return (rotate(q, rope_table(torch.tensor([6 + shift]), HEAD_DIM, 50.0, torch.float64)) * rotated).sum(-1)

    torch.testing.assert_close(scores(0), scores(1000), atol=1e-6, rtol=1e-6)
    mixer = new_rat(4)
    q, k, _, _, _ = projections(mixer, hidden(10))
    own = (angle(q[9], 2) * angle(k[9], 2)).sum(-1)
    close(own, (q[9] * k[9]).sum(-1))


def test_heads_take_query_groups_in_turn():  # oracle 14
    mixer, x = new_rat(4, qk_groups=2), hidden(18)
    with torch.no_grad():
        mixer.q_proj.weight.view(2, HEAD_DIM, WIDTH)[1] = 0
    _, k, v, gate, _ = projections(mixer, x)
    q = mixer.q_proj(x).view(-1, 2, HEAD_DIM)
    out = mixer.attend(q, k[:, :2], v, gate, documents(18))
    uniform = attended(gate, v, 4)
    close(out[:, 1::2], uniform[:, 1::2])
    assert (out[:, 0::2] - uniform[:, 0::2]).abs().max() > 1e-3


@pytest.mark.parametrize("qk_groups", [1, 2, 4])
def test_parameter_count(qk_groups):  # oracle 15; one norm weight of D belongs to the block
    count = sum(p.numel() for p in new_rat(4, qk_groups).parameters())
    assert count == 4 * WIDTH**2 + 2 * qk_groups * HEAD_DIM * WIDTH + WIDTH


@pytest.mark.parametrize("chunk_size", [1, 2, 16, 64])
def test_initial_gates_spread_over_the_chunk(chunk_size):  # oracle 16
    gates = torch.cat([torch.sigmoid(new_rat(chunk_size, seed=s).forget_proj.bias) for s in range(40)])
    low, high = 0.5, max(0.5, 1 - 1 / chunk_size)
    assert gates.min() >= low - 1e-6
    assert gates.max() <= high + 1e-6
    if chunk_size == 16:
        assert gates.max() > 0.93


def test_past_tokens_count_only_through_their_chunk_state():
    """Swapping tokens inside a finished chunk changes later outputs only through the chunk's final state."""
    size = 4
    mixer, x = new_rat(size), hidden(12)
    q, k, v, gate, _ = projections(mixer, x)
    finals = Chunks(torch.tensor([0, 4, 8, 12]))
    k_run, v_run = gated_scan(gate, (k, v), finals)
    last = torch.tensor([3, 7])
    table = rope_table(torch.tensor([0, 1]), HEAD_DIM, 50.0, torch.float64)
    query = rotate(q[8:], rope_table(torch.tensor([2] * 4), HEAD_DIM, 50.0, torch.float64))
    scores = torch.einsum("thd,jhd->thj", query, rotate(k_run[last], table)) / math.sqrt(HEAD_DIM)
    own = (q[8:] * k_run[8:]).sum(-1, keepdim=True) / math.sqrt(HEAD_DIM)
    weights = torch.cat((scores, own), -1).softmax(-1)
    expected = torch.einsum("thj,jhd->thd", weights[..., :2], v_run[last]) + weights[..., 2:] * v_run[8:]
    out = mixer.attend(mixer.q_proj(x).view(-1, 2, HEAD_DIM), k[:, :2], v, gate, documents(12))
    close(out[8:], expected)
