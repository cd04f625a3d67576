from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import (
    FalconMambaConfig,
    FalconMambaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    PreTrainedModel,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
    xLSTMConfig,
    xLSTMForCausalLM,
)

from eval.efficiency import NoCacheError, efficiency
from eval.model import Model

SIZES = {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2}


def mamba2() -> PreTrainedModel:
    return Mamba2ForCausalLM(Mamba2Config(**SIZES, state_size=4, num_heads=4, head_dim=16, n_groups=1))


RECURRENT: dict[str, Callable[[], PreTrainedModel]] = {
    "mamba": lambda: MambaForCausalLM(MambaConfig(**SIZES, state_size=4)),
    "mamba2": mamba2,
    "falcon_mamba": lambda: FalconMambaForCausalLM(FalconMambaConfig(**SIZES, state_size=4)),
    "rwkv": lambda: RwkvForCausalLM(RwkvConfig(**SIZES)),
    "xlstm": lambda: xLSTMForCausalLM(xLSTMConfig(**SIZES | {"hidden_size": 128}, num_heads=2, chunk_size=16)),
}


@pytest.mark.parametrize("kind", RECURRENT)
def test_the_cache_of_a_recurrent_model_is_found_whatever_its_name_and_does_not_grow(
    kind: str, new_model: Callable[..., Model]
) -> None:
    torch.manual_seed(0)
    model = Model(RECURRENT[kind](), new_model("llama").tokenizer, kind)
    short, long = (efficiency(model, length) for length in (40, 80))
    assert short.cache_bytes == long.cache_bytes > 0
    assert min(short.prefill_tokens_per_second, short.decode_tokens_per_second) > 0


def test_a_model_without_a_cache_is_named(new_model: Callable[..., Model]) -> None:
    sizes = SIZES | {"num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48, "lru_width": 32}
    griffin = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**sizes))
    with pytest.raises(NoCacheError, match="griffin hands out no cache"):
        efficiency(Model(griffin, new_model("llama").tokenizer, "griffin"), 40)
