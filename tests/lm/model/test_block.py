"""A decoder layer is its formula."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lm.model.documents import Documents

ACTIVATIONS = {
    "swiglu": lambda x: x * torch.sigmoid(x),
    "geglu": lambda x: torch.nn.functional.gelu(x, approximate="tanh"),
    "gelu": lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
}


def normed(norm: torch.nn.Module, x: Tensor) -> Tensor:
    if isinstance(norm, torch.nn.Identity):
        return x
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight


@pytest.mark.parametrize("mlp", list(ACTIVATIONS))
@pytest.mark.parametrize("output_norms", [False, True])
@pytest.mark.parametrize("pattern", ["global", "conv_global"])
def test_a_layer_is_its_formula(new_model, pattern: str, output_norms: bool, mlp: str) -> None:
    layer = new_model(pattern, mlp=mlp, output_norms=output_norms).model.blocks[0]
    for name, parameter in layer.named_parameters():
        if "layernorm" in name:
            torch.nn.init.normal_(parameter)
    documents = Documents.from_lengths([5, 6])
    x = torch.randn(11, 16, dtype=torch.float64)
    inputs = normed(layer.input_layernorm, x)
    if pattern == "conv_global":
        inputs = layer.short_conv(inputs, documents)
    middle = x + normed(layer.mixer_output_layernorm, layer.mixer(inputs, documents))
    inner = normed(layer.post_attention_layernorm, middle)
    up = inner @ layer.mlp.up_proj.weight.T
    wide = ACTIVATIONS[mlp](up) if mlp == "gelu" else ACTIVATIONS[mlp](inner @ layer.mlp.gate_proj.weight.T) * up
    out = middle + normed(layer.mlp_output_layernorm, wide @ layer.mlp.down_proj.weight.T)
    torch.testing.assert_close(layer(x, documents), out, atol=1e-12, rtol=1e-12)
