"""The convolution mixer; what holds for every mixer is tested in tests/lm/model."""

from __future__ import annotations

import pytest
import torch

from lm.model.documents import Documents
from lm.model.mixers import Dimensions, build_mixer
from lm.model.mixers.convolution import ConvolutionOptions

X = torch.randn(30, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def new_mixer(width):
    torch.manual_seed(0)
    mixer = build_mixer(ConvolutionOptions(width=width), Dimensions(16, 4, 2, 4, 100.0, 1e-6))
    mixer.init_weights(0.5)
    return mixer.double()


@pytest.mark.parametrize("width", [2, 4, 40])
def test_it_is_the_formula_with_pytorchs_convolution(width):
    mixer = new_mixer(width)
    gate_in, gate_out, values = (X @ part.T for part in mixer.in_proj.weight.chunk(3))
    inputs = gate_in * values
    kernel = mixer.convolution.weight.T.flip(1)[:, None]  # PyTorch's first weight is that of the oldest input
    padded = torch.nn.functional.pad(inputs.T[None], (width - 1, 0))
    convolved = torch.nn.functional.conv1d(padded, kernel, groups=16)[0].T + inputs
    expected = (gate_out * convolved) @ mixer.o_proj.weight.T
    torch.testing.assert_close(mixer(X, Documents.from_lengths([30])), expected, atol=1e-12, rtol=1e-12)


def test_an_output_depends_on_just_its_width():
    mixer = new_mixer(4)
    x = X.clone().requires_grad_(True)
    for t in range(30):
        (grad,) = torch.autograd.grad(mixer(x, Documents.from_lengths([30]))[t].sum(), x)
        assert grad.abs().sum(-1).nonzero().flatten().tolist() == list(range(max(0, t - 3), t + 1))


def test_its_cache_does_not_grow_and_is_apart_from_that_of_a_convolution_before_it(new_model):
    pattern, mixers = "m", {"m": {"kind": "convolution", "width": 3, "short_conv": 2}}
    model = new_model(pattern, mixers=mixers).eval()
    cache = model.model.new_cache(1, torch.float64, torch.device("cpu"))
    tokens, stepped = torch.arange(20), []
    with torch.no_grad():
        for token in tokens:
            stepped.append(model(token[None], Documents.from_lengths([1], past=cache.seen), cache=cache))
            assert cache.layers[0].used_bytes == (2 + 1) * 16 * 8
        whole = model(tokens, Documents.from_lengths([20]))
    torch.testing.assert_close(torch.cat(stepped), whole, atol=1e-10, rtol=1e-10)
