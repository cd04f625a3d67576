"""What holds for every mixer and every pattern: documents are islands, no token sees the future, any length works."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lm.model.documents import Documents

LENGTHS = [7, 1, 13, 4, 20]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def stream(lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 23, (sum(lengths),), generator=generator)


def inputs(tokens, dtype=torch.float64, seed=0):
    return torch.randn(tokens, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def future_gradient(mix, x: Tensor) -> Tensor:
    """Largest |d out_t / d x_s| for each pair t, s with s > t, as a [T, T] matrix."""
    x = x.clone().requires_grad_(True)
    out = mix(x)
    probe = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    rows = [
        torch.autograd.grad((out[t] * probe[t]).sum(), x, retain_graph=True)[0].abs().amax(-1) for t in range(len(x))
    ]
    return torch.stack(rows).triu(1)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_packed_document_has_the_logits_it_has_alone(pattern_name, new_model, dtype, training):
    model = new_model(pattern_name, dtype, initializer_range=0.2).train(training)
    tokens = stream(LENGTHS)
    packed = model(tokens, Documents.from_lengths(LENGTHS)).split(LENGTHS)
    for document, logits in zip(tokens.split(LENGTHS), packed, strict=True):
        alone = model(document, Documents.from_lengths([len(document)]))
        torch.testing.assert_close(logits, alone, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("changed", range(len(LENGTHS)))
def test_a_changed_document_leaves_the_others_exactly_as_they_were(mixer_name, new_mixer, changed, training):
    mixer = new_mixer(mixer_name).train(training)
    documents = Documents.from_lengths(LENGTHS)
    other = documents.document != changed
    probe = inputs(sum(LENGTHS), seed=2)

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_(True)
        out = mixer(x, documents)
        (grad,) = torch.autograd.grad((out * probe).sum(), x)
        return out[other], grad[other]

    x = inputs(sum(LENGTHS))
    moved = torch.where(other[:, None], x, inputs(sum(LENGTHS), seed=3))
    for before, after in zip(run(x), run(moved), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, 19])
def test_no_output_depends_on_a_later_input(mixer_name, new_mixer, tokens, training):
    mixer = new_mixer(mixer_name).train(training)
    documents = Documents.from_lengths([tokens])
    assert future_gradient(lambda x: mixer(x, documents), inputs(tokens)).max() == 0


@pytest.mark.parametrize("training", [True, False])
def test_patterns_are_causal_too(pattern_name, new_model, training):
    model = new_model(pattern_name).train(training)
    documents = Documents.from_lengths([17])
    embedded = []
    model.model.embed_tokens.register_forward_hook(
        lambda module, args, out: embedded.append(out.detach().requires_grad_(True)) or embedded[-1]
    )
    logits = model(stream([17]), documents)
    for t in range(17):
        (grad,) = torch.autograd.grad(logits[t].sum(), embedded[0], retain_graph=True)
        assert grad[t + 1 :].abs().sum() == 0
        assert grad[t].abs().sum() > 0


@pytest.mark.parametrize("training", [True, False])
def test_every_length_from_one_up_works(mixer_name, new_mixer, training):
    mixer = new_mixer(mixer_name).train(training)
    x = inputs(21)
    whole = mixer.eval()(x, Documents.from_lengths([21]))
    for tokens in range(1, 22):
        mixer.train(training)
        out = mixer(x[:tokens], Documents.from_lengths([tokens]))
        assert out.shape == (tokens, 16)
        assert out.isfinite().all()
        if not training or mixer_name != "s2":  # a shifted-short document is cut only once it outgrows a group
            torch.testing.assert_close(out, whole[:tokens], atol=1e-10, rtol=1e-10)


def test_gradients_are_finite_and_reach_every_parameter(pattern_name, new_model):
    model = new_model(pattern_name).train()
    tokens = stream(LENGTHS)
    targets = tokens.roll(-1)
    model(tokens, Documents.from_lengths(LENGTHS), targets).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        scores = "q_proj" in name or "k_proj" in name
        unseen = scores and sees_only_itself(model.model.mixers[int(name.split(".")[2])])
        assert (parameter.grad.abs().max() < 1e-12) == unseen, name


def sees_only_itself(mixer) -> bool:
    """Whether every softmax has one entry, so that scores do not matter: one chunk, or a window of one."""
    return getattr(mixer.options, "chunk_size", 0) > sum(LENGTHS) or getattr(mixer.options, "window", None) == 1


def test_the_loss_is_the_sum_over_targets(new_model):
    model = new_model("hybrid_four")
    tokens = stream(LENGTHS)
    documents = Documents.from_lengths(LENGTHS)
    targets = torch.where(torch.arange(len(tokens)) % 3 == 0, -100, tokens.roll(-1))
    result = model(tokens, documents, targets)
    expected = torch.nn.functional.cross_entropy(model(tokens, documents), targets, reduction="none")
    torch.testing.assert_close(result.loss, expected.sum())
    torch.testing.assert_close(result.token_nll.double(), expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_stays_near_float32(pattern_name, new_model):
    model = new_model(pattern_name, torch.float32, initializer_range=0.1)
    tokens, documents = stream(LENGTHS), Documents.from_lengths(LENGTHS)
    exact = model(tokens, documents)
    rough = model.to(torch.bfloat16)(tokens, documents).float()
    assert (exact - rough).norm() < 2e-2 * exact.norm()


class TestWrongShiftedShort:
    """The suite must notice the variants of S2 that are in circulation and see the future."""

    HEADS, GROUP, TOKENS = 4, 8, 32

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(self.TOKENS, self.HEADS, 4).transpose(0, 1)

    def _grouped(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Causal attention inside groups of consecutive rows of [heads, tokens, head_dim]."""
        q, k, v = (t.unflatten(1, (-1, self.GROUP)) for t in (q, k, v))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).flatten(1, 2)

    def _wrapped_roll(self, x: Tensor) -> Tensor:
        """The published roll: the first half group of the shifted heads sees the last one."""
        q = self._heads(x)
        still, moved = q.chunk(2)
        rolled = moved.roll(-self.GROUP // 2, dims=1)
        out = self._grouped(rolled, rolled, rolled).roll(self.GROUP // 2, dims=1)
        return torch.cat((self._grouped(still, still, still), out)).transpose(0, 1).flatten(1)

    def _dropped_shift_back(self, x: Tensor) -> Tensor:
        """The roll back happens inside each group, so outputs land on the wrong tokens."""
        q = self._heads(x)
        still, moved = q.chunk(2)
        rolled = moved.roll(-self.GROUP // 2, dims=1)
        out = self._grouped(rolled, rolled, rolled).unflatten(1, (-1, self.GROUP))
        out = out.roll(self.GROUP // 2, dims=2).flatten(1, 2)
        return torch.cat((self._grouped(still, still, still), out)).transpose(0, 1).flatten(1)

    def _transposed_once_too_often(self, x: Tensor) -> Tensor:
        """The output keeps heads before tokens where tokens before heads are expected."""
        q = self._heads(x)
        still, moved = q.chunk(2)
        rolled = moved.roll(-self.GROUP // 2, dims=1)
        out = self._grouped(rolled, rolled, rolled).roll(self.GROUP // 2, dims=1)
        return torch.cat((self._grouped(still, still, still), out)).reshape(self.TOKENS, -1)

    @pytest.mark.parametrize("variant", ["_wrapped_roll", "_dropped_shift_back", "_transposed_once_too_often"])
    def test_is_caught_by_the_causality_test(self, variant):
        assert future_gradient(getattr(self, variant), inputs(self.TOKENS)).max() > 1e-3

    @pytest.mark.parametrize(("variant", "pairs"), [("_wrapped_roll", 32), ("_dropped_shift_back", 188)])
    def test_leaks_exactly_the_pairs_known_of_it(self, variant, pairs):
        """Over heads: of a query and a later token of the same head."""
        jacobian = torch.autograd.functional.jacobian(getattr(self, variant), inputs(self.TOKENS))
        by_head = jacobian.view(self.TOKENS, self.HEADS, 4, self.TOKENS, self.HEADS, 4).abs().amax((2, 5))
        leaks = [(by_head[:, head, :, head].triu(1) > 0).sum().item() for head in range(self.HEADS)]
        assert sum(leaks) == pairs
        assert leaks[:2] == [0, 0], "the heads that stand still see no future"
