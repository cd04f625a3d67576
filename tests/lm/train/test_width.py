"""The coordinate check: how far a step moves what the model computes must not depend on its width."""

from collections.abc import Callable

import pytest
import torch

from lm.errors import UserError
from lm.model.decoder import LanguageModel
from lm.model.documents import Documents
from lm.model.options import ModelOptions
from lm.run_file import RunFile
from lm.train.optimizer import build_optimizer
from lm.train.optimizer_options import OptimizerOptions
from lm.train.width import carry_over

BASE, WIDE = 32, 256


def moved(width: int, kind: str, base: int | None) -> float:
    """Root mean square of what four steps on one text change in the logits."""
    torch.manual_seed(0)
    model = LanguageModel(
        ModelOptions.model_validate(
            {
                "vocab_size": 64,
                "hidden_size": width,
                "num_attention_heads": width // 16,
                "mixers": {"rat": {"kind": "rat", "chunk_size": 4}, "a": {"kind": "attention"}},
                "layers": "rat a",
                "tie_word_embeddings": False,
                "initializer_range": 0.1,
            }
        )
    )
    options = OptimizerOptions.model_validate({"lr": 5e-3, "kind": kind, "base_width": base, "weight_decay": 0.0})
    optimizer = build_optimizer(model, options, carry_over(model, options))
    tokens = torch.randint(64, (64,), generator=torch.Generator().manual_seed(1))
    documents = Documents.from_lengths([64])
    before = model(tokens, documents).detach()
    for _ in range(4):
        for group in optimizer.param_groups:
            group["lr"] = options.lr * group["lr_factor"]
        optimizer.zero_grad()
        (model(tokens, documents, tokens.roll(-1)).loss / 64).backward()
        optimizer.step()
    return float((model(tokens, documents).detach() - before).square().mean().sqrt())


def test_what_a_step_moves_does_not_depend_on_the_width() -> None:
    carried = moved(WIDE, "adamw", BASE) / moved(BASE, "adamw", BASE)
    plain = moved(WIDE, "adamw", None) / moved(BASE, "adamw", None)
    assert 0.5 < carried < 2
    assert plain > 2 * carried


def test_rates_and_weights_are_carried_over() -> None:
    torch.manual_seed(0)
    options = ModelOptions.model_validate(
        {
            "vocab_size": 64,
            "hidden_size": 64,
            "num_attention_heads": 4,
            "mixers": {"a": {"kind": "attention"}},
            "layers": "a",
            "tie_word_embeddings": False,
        }
    )
    torch.manual_seed(0)
    model = LanguageModel(options)
    torch.manual_seed(0)
    plain = LanguageModel(options)
    factors = carry_over(model, OptimizerOptions(lr=1.0, base_width=16))
    for (name, parameter), (_, own) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        shrunk = 4.0 if name == "lm_head.weight" else 2.0 if "_proj" in name else 1.0
        assert torch.allclose(parameter * shrunk, own), name
        assert factors.get(name, 1.0) == (1.0 if shrunk == 1 else 0.25), name
    muon = carry_over(plain, OptimizerOptions(lr=1.0, base_width=16, kind="muon"))
    assert muon["model.layers.0.mlp.up_proj.weight"] == 0.5
    assert muon["lm_head.weight"] == 0.25


def test_a_tied_head_cannot_be_carried_over(make_run: Callable[..., RunFile]) -> None:
    with pytest.raises(UserError, match=r"base_width needs a head of its own"):
        make_run("optimizer.base_width=8", "model.tie_word_embeddings=true")
    run = make_run("optimizer.base_width=8", "model.tie_word_embeddings=false")
    assert run.trainee.build().lr_factors["lm_head.weight"] == 0.5
