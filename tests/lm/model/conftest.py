"""Every mixer in every mode that changes what it computes: the contracts are tested on all of them alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lm.model.decoder import LanguageModel
from lm.model.mixers import MIXERS as KINDS
from lm.model.mixers import Dimensions, Mixer, build_mixer
from lm.model.options import ModelOptions

DIMENSIONS = Dimensions(
    hidden_size=16, num_attention_heads=4, num_key_value_heads=2, head_dim=4, rope_theta=100.0, rms_norm_eps=1e-6
)

MIXERS: dict[str, dict[str, Any]] = {
    "global": {"kind": "attention"},
    "local": {"kind": "attention", "window": 3},
    "local_one": {"kind": "attention", "window": 1},
    "dilated": {"kind": "attention", "window": 3, "dilation": 2},
    "dilated_all": {"kind": "attention", "dilation": 3, "sink": True},
    "bias_llama3": {
        "kind": "attention",
        "qkv_bias": True,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8,
        },
    },
    "nope_sink_norm": {"kind": "attention", "positions": "none", "sink": True, "qk_norm": True},
    "rat": {"kind": "rat", "chunk_size": 4},
    "rat_one": {"kind": "rat", "chunk_size": 1, "qk_groups": 4},
    "rat_rnn": {"kind": "rat", "chunk_size": 1000},
    "rat_token": {"kind": "rat", "chunk_size": 3, "positions": "token", "qk_groups": 1},
    "rat_nope": {"kind": "rat", "chunk_size": 5, "positions": "none"},
    "rat_yarn": {
        "kind": "rat",
        "chunk_size": 3,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4},
    },
    "s2": {"kind": "shifted_short", "group_size": 6},
    "ls": {"kind": "long_short", "short_heads": 2, "window": 3},
    "ls_all_short": {"kind": "long_short", "short_heads": 4, "window": 5, "sink": True},
    "ls_all_long": {"kind": "long_short", "short_heads": 0, "window": 5},
}
# A mixer that is new has no modes here yet: it is held to the contracts as its defaults have it.
MIXERS |= {kind: {"kind": kind} for kind in KINDS.keys() - {mixer["kind"] for mixer in MIXERS.values()}}
CONVOLVED = {
    "conv_global": MIXERS["global"] | {"short_conv": 4},
    "conv_dilated": MIXERS["dilated"] | {"short_conv": 2},
    "conv_rat": MIXERS["rat"] | {"short_conv": 9},
    "conv_s2": MIXERS["s2"] | {"short_conv": 3},
    "conv_ls": MIXERS["ls"] | {"short_conv": 3},
}

PATTERNS = {name: name for name in (*MIXERS, *CONVOLVED)} | {
    "hybrid_four": "rat local s2 ls",
    "hybrid_deep": "(rat local)*2 global",
    "hybrid_odd": "dilated rat_token ls_all_short nope_sink_norm",
    "hybrid_two": "ls rat",
    "hybrid_s2": "s2 global s2",
    "hybrid_rat": "rat_token rat_nope local_one",
    "hybrid_rnn": "rat_rnn local nope_sink_norm",
    "hybrid_dilated": "(dilated dilated_all)*2 rat_one",
    "hybrid_conv": "conv_rat local conv_global",
}
CHANGES = {"hybrid_odd": {"output_norms": True, "mlp": "geglu"}}


def make_mixer(name: str, dtype: torch.dtype = torch.float64, seed: int = 0) -> Mixer[Any]:
    torch.manual_seed(seed)
    options = ModelOptions(
        hidden_size=16, num_attention_heads=4, num_key_value_heads=2, mixers={"m": MIXERS[name]}, layers="m"
    ).mixers["m"]
    mixer = build_mixer(options, DIMENSIONS)
    mixer.init_weights(0.5)
    draw_zeros(mixer)
    return mixer.to(dtype)


def draw_zeros(module: torch.nn.Module) -> None:
    """Gives a value to what starts at zero and would hide mistakes there."""
    for name, parameter in module.named_parameters():
        if name.endswith((".logit", "q_proj.bias", "k_proj.bias", "v_proj.bias")):
            torch.nn.init.normal_(parameter)


def make_model(pattern: str, dtype: torch.dtype = torch.float64, seed: int = 0, **changes: Any) -> LanguageModel:
    torch.manual_seed(seed)
    options = ModelOptions(
        **{
            "vocab_size": 23,
            "hidden_size": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 24,
            "rope_theta": 100.0,
            "initializer_range": 0.5,
            "mixers": MIXERS | CONVOLVED,
            "layers": PATTERNS.get(pattern, pattern),
        }
        | CHANGES.get(pattern, {})
        | changes
    )
    model = LanguageModel(options)
    draw_zeros(model)
    return model.to(dtype)


@pytest.fixture(params=list(MIXERS))
def mixer_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=list(PATTERNS))
def pattern_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def new_mixer() -> Any:
    return make_mixer


@pytest.fixture
def new_model() -> Any:
    return make_model
