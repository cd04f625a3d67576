"""The C++ kernels are built by the named command alone, and what is not built or broken is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels.interval_attention import default
from kernels.native import library
from lm.cli import main


def test_nothing_is_built_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.FOLDER, str(tmp_path))
    assert library.unavailable() == "it is not built for this version and processor: run `braid build-kernels`"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("cpp_kernels")
def test_the_verb_says_where_they_are_and_backends_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build-kernels"]) == 0
    assert capsys.readouterr().out == f"{library.path()}\n"
    assert main(["backends"]) == 0
    assert capsys.readouterr().out.count("cpp        available") == 2


def test_a_compiler_that_is_missing_or_fails_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(library.FOLDER, str(tmp_path / "kernels"))
    fails = tmp_path / "fails"
    fails.write_text("#!/bin/sh\necho 'tiles.h:1: no such vector' >&2\nexit 1\n")
    fails.chmod(0o755)
    monkeypatch.setenv("CXX", str(fails))
    assert main(["build-kernels"]) == 2
    told = capsys.readouterr().err
    assert "failed:" in told
    assert "no such vector" in told
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX")
    assert main(["build-kernels"]) == 2
    assert "there is no C++ compiler" in capsys.readouterr().err
    assert not library.path().exists()


def test_a_broken_library_is_a_reason_and_no_crash_and_building_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if library.compiler() is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.setenv(library.FOLDER, str(tmp_path))
    library.path().write_bytes(b"not a library")
    reason = str(library.unavailable())
    assert reason.startswith(f"it cannot be loaded: {library.path()}: ")
    assert reason.endswith(": `braid build-kernels` builds it anew")
    assert main(["build-kernels"]) == 0
    assert capsys.readouterr().out == f"{library.path()}\n"
    assert library.unavailable() is None


def test_what_a_compiler_makes_is_loaded_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nfor last; do :; done\necho nothing > "$last"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv(library.FOLDER, str(tmp_path / "kernels"))
    assert main(["build-kernels"]) == 2
    assert "made what cannot be loaded" in capsys.readouterr().err
    assert list((tmp_path / "kernels").iterdir()) == []


def test_without_a_home_folder_the_named_one_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(library.FOLDER)
    library._path.cache_clear()
    assert "there is no home folder: name one in BRAID_KERNELS" in str(library.unavailable())
    assert main(["build-kernels"]) == 2
    assert "Name a folder in BRAID_KERNELS" in capsys.readouterr().err
    assert default("cpu") == "blocked"
    monkeypatch.setenv(library.FOLDER, str(tmp_path))
    assert library.path().parent == tmp_path
    assert library.unavailable() == "it is not built for this version and processor: run `braid build-kernels`"


def test_other_sources_flags_or_processors_are_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    before = library.path()
    assert library.path() == before
    library._identity.cache_clear()
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-g"))
    assert library.path() != before
    library._identity.cache_clear()
