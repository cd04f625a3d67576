"""The language model as a whole: its loss is that of its logits."""

from __future__ import annotations

import pytest
import torch

from lm.model.documents import Documents


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("multiple", [1, 8])
def test_the_loss_is_that_of_the_logits(new_model, tied: bool, multiple: int) -> None:
    """Of counted targets alone, with the z-loss, and without the rows that pad the embedding."""
    model = new_model("local", z_loss=0.3, tie_word_embeddings=tied, pad_vocab_to_multiple_of=multiple)
    tokens = torch.randint(0, 23, (13,), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1)
    targets[[2, 12]] = -100
    documents = Documents.from_lengths([5, 8])
    logits = model(tokens, documents)
    assert logits.shape == (13, 23)
    counted = targets != -100
    nll = torch.nn.functional.cross_entropy(logits[counted], targets[counted], reduction="sum")
    expected = nll + 0.3 * (logits[counted].logsumexp(-1) ** 2).sum()
    found = model(tokens, documents, targets)
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(found.token_nll.sum(), nll)
    parameters = list(model.parameters())
    for got, want in zip(
        torch.autograd.grad(found.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(got, want)
