"""Kernels that a run file asks for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from kernels import gated_scan, interval_attention
from kernels.backends import Backend, Backends
from lm.errors import UserError
from lm.model.documents import Documents
from lm.model.mixers import MIXERS, build_mixer
from lm.model.options import ModelOptions
from lm.run_file import RunFile
from lm.train.backends import prefer_backends
from lm.train.loop import train
from lm.train.options import TrainOptions

MakeRun = Callable[..., RunFile]


@pytest.fixture(autouse=True)
def no_preference(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is forced before a test, and nothing after it."""
    for variable in ("BRAID_ATTENTION_BACKEND", "BRAID_SCAN_BACKEND"):
        monkeypatch.delenv(variable, raising=False)
    yield
    interval_attention.prefer(None)
    gated_scan.prefer(None)


@pytest.mark.parametrize(
    ("key", "backends"),
    [("attention_backend", interval_attention.backends()), ("scan_backend", gated_scan.backends())],
)
def test_the_option_knows_every_backend(key: str, backends: dict[str, str]) -> None:
    (names, _) = get_args(TrainOptions.model_fields[key].annotation)
    assert list(get_args(names)) == list(backends)


def test_a_run_trains_with_the_kernels_it_asks_for(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    operations = {interval_attention._ATTENTION, gated_scan._SCAN}
    ran = set()

    def watched(operation: Backends) -> Backend:
        run = operation._backends["reference"].run
        return Backend(lambda *call: ran.add(operation) or run(*call))

    for operation in operations:
        monkeypatch.setitem(operation._backends, "reference", watched(operation))
    train(make_run("train.steps=1", "train.attention_backend=reference", "train.scan_backend=reference"))
    assert ran == operations


@pytest.mark.skipif(interval_attention.backends()["flex"] == "available", reason="needs a machine without a GPU")
def test_one_that_cannot_run_ends_the_run_before_it_reads_data(make_run: MakeRun) -> None:
    run = make_run("train.attention_backend=flex")
    with pytest.raises(UserError, match=r"train\.attention_backend: .*'flex' cannot run here: there is no GPU"):
        train(run)
    assert not run.train.output_dir.exists()


def prefer(run: RunFile) -> None:
    prefer_backends(run.train, run.trainee, torch.device("cpu"))


# Heads of 4 are no multiple of 16; RAT's scan has 2 key groups of 8 channels in the last case.
REFUSED = [
    ("attention_backend", ("cpp", "model.head_dim=4"), "head_dim must be a multiple of 16 up to 256; it is 4"),
    ("attention_backend", ("cpp", "model.head_dim=16", "train.precision=bf16"), "computes in float32, not bfloat16"),
    ("scan_backend", ("cpp", "model.head_dim=16", "train.precision=bf16"), "computes in float32, not bfloat16"),
    ("scan_backend", ("cpp", "model.mixers.rat.qk_groups=1"), "channels must come in multiples of 16"),
]


@pytest.mark.usefixtures("cpp_kernels")
@pytest.mark.parametrize("by_environment", [False, True])
@pytest.mark.parametrize(("key", "overrides", "reason"), REFUSED)
def test_one_that_refuses_what_the_layers_ask_ends_the_run_before_it_reads_data(
    key: str,
    overrides: tuple[str, ...],
    reason: str,
    by_environment: bool,
    make_run: MakeRun,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, *others = overrides
    asking, variable = f"train.{key}", f"BRAID_{key.upper()}"
    if by_environment:
        monkeypatch.setenv(variable, name)
        run, asking = make_run(*others), variable
    else:
        run = make_run(f"train.{key}={name}", *others)
    with pytest.raises(UserError, match=rf"^{re.escape(asking)}: .*'cpp' cannot serve this call: .*{reason}"):
        train(run)
    assert not run.train.output_dir.exists()


@pytest.mark.usefixtures("cpp_kernels")
def test_one_that_no_layer_asks_anything_that_it_refuses_serves_the_run(make_run: MakeRun) -> None:
    convolution = ("model.mixers.rat={kind: convolution}", "model.layers=rat*4", "train.precision=bf16")
    prefer(make_run("train.attention_backend=cpp", "train.scan_backend=cpp", "model.head_dim=16"))
    prefer(make_run("train.attention_backend=cpp", "train.scan_backend=cpp", *convolution))


@pytest.mark.parametrize("asks", sorted(MIXERS))
def test_the_call_of_a_mixers_options_is_one_that_the_mixer_makes(asks: str) -> None:
    """Shapes but for the number of tokens, types, and which of the extras there are, in bfloat16 activations."""
    more = {"long_short": {"short_heads": 2, "window": 2}, "shifted_short": {"group_size": 4}}
    model = ModelOptions.model_validate(
        {
            "hidden_size": 32,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "mixers": {"m": {"kind": asks} | more.get(asks, {})},
            "layers": "m",
        }
    )
    mixer = build_mixer(model.mixers["m"], model.dimensions).eval().bfloat16()
    made: list[tuple[Any, ...]] = []
    attention, scan = (
        calls.shown_to(lambda *call: made.append(call))
        for calls in (interval_attention.attention_calls, gated_scan.scan_calls)
    )
    with attention, scan:
        mixer(torch.randn(40, 32, dtype=torch.bfloat16), Documents.from_lengths([40]))
    stated = [
        call(model.dimensions, torch.bfloat16, torch.device("cpu"))
        for call in (model.mixers["m"].scan_call, model.mixers["m"].attention_call)
    ]
    assert [_form(call) for call in stated if call is not None] == [_form(call) for call in made]


def _form(call: Any) -> Any:
    if isinstance(call, Tensor):
        return (call.shape[1:], call.dtype)
    if isinstance(call, tuple | list):
        return tuple(map(_form, call))
    return type(call)


def test_the_next_run_is_not_bound_by_the_last_ones_choice(make_run: MakeRun) -> None:
    prefer(make_run("train.attention_backend=reference"))
    assert interval_attention._ATTENTION._preferred == "reference"
    prefer(make_run())
    assert interval_attention._ATTENTION._preferred is None
