"""Kernels that a run file asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import get_args

import pytest

from kernels import gated_scan, interval_attention
from kernels.backends import Backend, Backends
from lm.errors import UserError
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


def test_the_next_run_is_not_bound_by_the_last_ones_choice(make_run: MakeRun) -> None:
    prefer_backends(make_run("train.attention_backend=reference").train)
    assert interval_attention._ATTENTION._preferred == "reference"
    prefer_backends(make_run().train)
    assert interval_attention._ATTENTION._preferred is None
