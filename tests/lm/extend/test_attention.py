"""Shifted groups inside a Hugging Face model: what they see, and that nothing else changes it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import LlamaForCausalLM

from lm.extend.attention import attend, set_attention
from lm.model.documents import Documents

from .conftest import VOCAB, llama_config

GROUP = 8
LENGTHS = (13, 32, 3, 8, 9)


def dense_mask(lengths: list[int], group: int, heads: int, kv_heads: int) -> Tensor:
    """[heads, N, N] bool by the rule, one pair at a time: same document, not later, same segment."""
    position = torch.cat([torch.arange(length) for length in lengths])
    document = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    split = kv_heads if kv_heads % 2 == 0 else heads
    masks = []
    for head in range(heads):
        shifts = head * split // heads >= split // 2
        shift = torch.where(torch.tensor(lengths)[document] > group, group // 2 * shifts, 0)
        # A short document is one segment.
        segment = torch.where(torch.tensor(lengths)[document] > group, (position + shift) // group, 0)
        same = (document[:, None] == document) & (segment[:, None] == segment)
        masks.append(same & (position <= position[:, None]))
    return torch.stack(masks)


@settings(deadline=None, max_examples=40)
@given(
    half=st.integers(1, 9),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    kv_heads=st.sampled_from([1, 2, 3, 6]),
)
def test_equals_dense_attention_under_the_mask_of_the_rule(half: int, lengths: list[int], kv_heads: int) -> None:
    torch.manual_seed(0)
    heads, tokens = 6, sum(lengths)
    q = torch.randn(tokens, heads, 4, dtype=torch.float64, requires_grad=True)
    k, v = (torch.randn(tokens, kv_heads, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    versions = [x._version for x in (q, k, v)]
    out = attend(q, k, v, Documents.from_lengths(lengths), 2 * half)
    mask = dense_mask(lengths, 2 * half, heads, kv_heads)
    # [heads, N, D], keys repeated
    dense = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(0, 1), *(x.repeat_interleave(heads // kv_heads, 1).transpose(0, 1) for x in (k, v)), attn_mask=mask
    ).transpose(0, 1)
    torch.testing.assert_close(out, dense, atol=1e-12, rtol=1e-12)
    weights = torch.randn_like(out)
    for found, expected in zip(*(torch.autograd.grad(x, (q, k, v), weights) for x in (out, dense)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    assert [x._version for x in (q, k, v)] == versions


@pytest.mark.parametrize(("group", "same"), [(16, False), (20, False), (32, True), (64, True)])
def test_groups_are_full_attention_only_for_documents_that_fit_one(group: int, same: bool) -> None:
    q, k, v = torch.randn(3, 32, 2, 4, dtype=torch.float64)
    documents = Documents.from_lengths([32])
    found, full = attend(q, k, v, documents, group), attend(q, k, v, documents, None)
    assert (torch.equal(found, full) or torch.allclose(found, full, atol=1e-12)) is same


def test_value_probe_shows_no_future() -> None:
    """The value of key j alone is 1: every output before j is 0, and half a group after it too."""
    tokens = 32
    q, k = torch.randn(2, tokens, 4, 4, dtype=torch.float64)
    for key in range(tokens):
        v = torch.zeros(tokens, 4, 4, dtype=torch.float64)
        v[key] = 1
        out = attend(q, k, v, Documents.from_lengths([tokens]), GROUP)
        assert not out[:key].any()
        assert out[key].all()


def test_unshifted_heads_permute_with_their_groups_and_shifted_ones_are_a_cut_sequence() -> None:
    tokens = 32
    q, k, v = torch.randn(3, tokens, 4, 4, dtype=torch.float64)
    documents = Documents.from_lengths([tokens])
    out = attend(q, k, v, documents, GROUP)
    order = torch.arange(tokens).view(-1, GROUP)[torch.tensor([2, 0, 3, 1])].flatten()
    moved = attend(q[order], k[order], v[order], documents, GROUP)
    torch.testing.assert_close(moved[:, :2], out[order][:, :2])
    cut = [x[GROUP // 2 :, [2, 3, 2, 3]] for x in (q, k, v)]
    unshifted = attend(*cut, Documents.from_lengths([tokens - GROUP // 2]), GROUP)[:, :2]
    torch.testing.assert_close(out[GROUP // 2 :, 2:], unshifted)


class TestInAModel:
    """A Llama with grouped queries, in training mode unless said otherwise."""

    @pytest.fixture(params=[1, 2, 3, 6], ids=lambda heads: f"{heads} kv heads")
    def model(self, request: pytest.FixtureRequest) -> LlamaForCausalLM:
        torch.manual_seed(0)
        config = llama_config(num_attention_heads=6, num_key_value_heads=request.param, hidden_size=24)
        model = LlamaForCausalLM(config).double().train()
        set_attention(model, GROUP)
        return model

    def test_no_gradient_reaches_the_future(self, model: LlamaForCausalLM) -> None:
        tokens = 32
        x = model.get_input_embeddings()(stream(tokens))[None].detach().requires_grad_(True)
        hidden = model.model(inputs_embeds=x, use_cache=False).last_hidden_state
        for t in range(tokens):
            (gradient,) = torch.autograd.grad(hidden[0, t].sum(), x, retain_graph=True)
            assert not gradient[0, t + 1 :].any()
            assert gradient[0, t].any()

    def test_later_tokens_change_nothing_and_can_be_cut_off(self, model: LlamaForCausalLM) -> None:
        ids = stream(32)
        whole = logits(model, ids[None])[0]
        changed = ids.clone()
        changed[20:] = (ids[20:] + 1) % VOCAB
        torch.testing.assert_close(logits(model, changed[None])[0, :20], whole[:20])
        torch.testing.assert_close(logits(model, ids[None, :20])[0], whole[:20])

    def test_packed_documents_equal_each_alone(self, model: LlamaForCausalLM) -> None:
        ids, documents = stream(sum(LENGTHS)), Documents.from_lengths(LENGTHS)
        alone = torch.cat([logits(model, part[None])[0] for part in ids.split(LENGTHS)])
        position_ids = documents.position[None]
        torch.testing.assert_close(logits(model, ids[None], position_ids=position_ids)[0], alone)
        torch.testing.assert_close(logits(model, ids[None], position_ids=position_ids, documents=documents)[0], alone)

    @pytest.mark.parametrize("side", ["left", "right"])
    @pytest.mark.parametrize("training", [True, False])
    def test_padded_rows_equal_each_alone(self, model: LlamaForCausalLM, side: str, training: bool) -> None:
        model.train(training)
        width, order = max(LENGTHS), [3, 0, 4, 1, 2]
        rows, mask = torch.zeros(len(LENGTHS), width, dtype=torch.int64), torch.zeros(len(LENGTHS), width).long()
        parts = stream(sum(LENGTHS)).split(LENGTHS)
        for row, part in enumerate(parts):
            place = slice(width - len(part), width) if side == "left" else slice(len(part))
            rows[row, place], mask[row, place] = part, 1
        position_ids = (mask.cumsum(1) - 1).clamp(min=0)
        for indices in ([0, 1, 2, 3, 4], order, [2]):
            out = logits(model, rows[indices], attention_mask=mask[indices], position_ids=position_ids[indices])
            for row, index in enumerate(indices):
                torch.testing.assert_close(out[row][mask[index].bool()], logits(model, parts[index][None])[0])

    def test_recomputed_layers_give_the_same_gradients(self, model: LlamaForCausalLM) -> None:
        ids, documents = stream(sum(LENGTHS)), Documents.from_lengths(LENGTHS)

        def gradients() -> list[Tensor]:
            model.zero_grad()
            out = logits(model, ids[None], position_ids=documents.position[None], documents=documents)
            out.square().sum().backward()
            return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

        plain = gradients()
        model.activation_checkpointing_enable()
        for found, expected in zip(gradients(), plain, strict=True):
            torch.testing.assert_close(found, expected)

    def test_evaluation_is_the_stock_model(self, model: LlamaForCausalLM) -> None:
        ids = stream(40).view(2, 20)
        mask = torch.ones_like(ids)
        mask[0, :7] = 0
        found = logits(model.eval(), ids, attention_mask=mask)
        grouped = logits(model.train(), ids, attention_mask=mask)
        model.eval().set_attn_implementation("sdpa")
        torch.testing.assert_close(found[mask.bool()], logits(model, ids, attention_mask=mask)[mask.bool()])
        assert (grouped - found)[mask.bool()].abs().max() > 1e-3

    def test_decoding_from_a_cache_is_the_stock_models(self, model: LlamaForCausalLM) -> None:
        ids = stream(24).view(2, 12)
        mask = torch.ones_like(ids)
        mask[1, :5] = 0
        model.eval()
        found = model.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False)
        model.set_attn_implementation("sdpa")
        assert torch.equal(found, model.generate(ids, attention_mask=mask, max_new_tokens=9, do_sample=False))


def test_a_mask_that_does_not_fit_the_keys_is_refused() -> None:
    attention = set_attention(LlamaForCausalLM(llama_config()), GROUP)
    q, mask = torch.randn(1, 4, 6, 8), torch.ones(1, 5).long()
    with pytest.raises(ValueError, match=r"\(1, 6\)"):
        attention(torch.nn.Identity(), q, q, q, mask)


def stream(tokens: int) -> Tensor:
    return torch.randint(0, VOCAB, (tokens,), generator=torch.Generator().manual_seed(tokens))


def logits(model: LlamaForCausalLM, ids: Tensor, **more: object) -> Tensor:
    return model(ids, use_cache=False, **more).logits
