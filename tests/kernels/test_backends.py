"""Choosing between implementations: what is asked for is done or refused, and nothing slow is chosen in silence."""

from __future__ import annotations

import importlib.util
import logging
import sys
from pathlib import Path

import pytest

from kernels import backends
from kernels.backends import Backend, Backends, in_module

VARIABLE = "BRAID_TEST_BACKEND"


@pytest.fixture
def adding(monkeypatch: pytest.MonkeyPatch) -> Backends:
    monkeypatch.delenv(VARIABLE, raising=False)
    return Backends(
        "adding",
        VARIABLE,
        {
            "plain": Backend(lambda a, b: ("plain", a + b)),
            "fast": Backend(lambda a, b: ("fast", a + b), refuses=lambda a, b: "it has one digit" if a > 9 else None),
            "absent": Backend(lambda a, b: ("absent", 0), unavailable=lambda: "there is no abacus"),
        },
        {"cpu": ("plain",), "gpu": ("absent", "fast", "plain")},
    )


def test_reasons_name_every_backend(adding: Backends) -> None:
    assert adding.reasons() == {"plain": "available", "fast": "available", "absent": "there is no abacus"}


def test_the_call_comes_before_the_environment_and_that_before_the_preference(
    adding: Backends, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chosen(name: str | None) -> str:
        return str(adding.choose(name, "cpu", 1, 2)(1, 2)[0])

    assert chosen(None) == "plain"
    adding.prefer("fast")
    assert chosen(None) == "fast"
    monkeypatch.setenv(VARIABLE, "plain")
    assert chosen(None) == "plain"
    assert chosen("fast") == "fast"
    monkeypatch.delenv(VARIABLE)
    adding.prefer(None)
    assert chosen(None) == "plain"


def test_a_backend_that_was_asked_for_is_never_replaced(adding: Backends, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="adding: backend 'fast' cannot serve this call: it has one digit"):
        adding.choose("fast", "cpu", 10, 2)
    unavailable = "adding: backend 'absent' cannot run here: there is no abacus; these can: plain, fast"
    with pytest.raises(ValueError, match=unavailable):
        adding.choose("absent", "cuda", 1, 2)
    with pytest.raises(ValueError, match=unavailable):
        adding.prefer("absent")
    monkeypatch.setenv(VARIABLE, "fats")
    with pytest.raises(ValueError, match="no backend 'fats', there are plain, fast, absent; did you mean 'fast'"):
        adding.choose(None, "cpu", 1, 2)


def test_the_first_that_can_serves_a_call(adding: Backends, caplog: pytest.LogCaptureFixture) -> None:
    assert adding.choose(None, "cuda", 1, 2)(1, 2) == ("fast", 3)
    assert not caplog.records


def test_a_slow_choice_is_said_once(adding: Backends, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert adding.choose(None, "cuda", 10, 2)(10, 2) == ("plain", 12)
    assert [record.getMessage() for record in caplog.records] == [
        "adding on cuda runs as 'plain', which is slow (absent: there is no abacus; fast: it has one digit)"
    ]


def test_a_module_is_imported_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "needs_it.py").write_text("import a_package_that_nobody_has\n")
    (tmp_path / "has_all.py").write_text(
        "def unavailable(): return None\ndef refuses(x): return 'odd' if x % 2 else None\ndef run(x): return x // 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert in_module("needs_it").unavailable() == "a_package_that_nobody_has is not installed"
    halving = in_module("has_all")
    assert (halving.unavailable(), halving.refuses(3), halving.refuses(4), halving.run(4)) == (None, "odd", None, 2)


def test_an_exported_model_holds_no_modules_of_its_own() -> None:
    """Where the code stands in another file, a module of this name would be another version, or not there at all."""
    spec = importlib.util.spec_from_file_location("modeling_braid", backends.__file__)
    assert spec is not None
    assert spec.loader is not None
    exported = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = exported
    try:
        spec.loader.exec_module(exported)
        assert exported.in_module("json").unavailable() == "it is no part of an exported model"
    finally:
        del sys.modules[spec.name]
