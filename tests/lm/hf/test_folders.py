"""A model's folder is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lm.errors import UserError
from lm.hf.folders import written_whole


def written(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_files_take_their_places_and_weights_of_before_are_gone(tmp_path: Path) -> None:
    folder = tmp_path / "below" / "model"
    folder.mkdir(parents=True)
    before = ("model-00001-of-00002.safetensors", "adapter_model.safetensors", "config.json", "notes.txt")
    for name in before:
        (folder / name).write_text("old")
    with written_whole(folder) as new:
        for name in ("model.safetensors", "config.json"):
            (new / name).write_text("new")
    assert written(folder) == {"model.safetensors": "new", "config.json": "new", "notes.txt": "old"}


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, OSError])
def test_an_interruption_leaves_everything_as_it_was(tmp_path: Path, there: bool, fault: type[BaseException]) -> None:
    folder = tmp_path / "model"
    if there:
        folder.mkdir()
        (folder / "model.safetensors").write_text("old")

    def half() -> None:
        with written_whole(folder) as new:
            (new / "model.safetensors").write_text("half")
            raise fault

    with pytest.raises(fault):
        half()
    assert [path.name for path in tmp_path.iterdir()] == (["model"] if there else [])
    assert not there or written(folder) == {"model.safetensors": "old"}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/model cannot be written"), written_whole(tmp_path / "file" / "model"):
        pass


def test_nothing_is_written_beside_the_folder(tmp_path: Path) -> None:
    """A mounted volume: only the folder itself is the user's, and a copy from another disk can fill it."""
    folder = tmp_path / "volume"
    folder.mkdir()
    (folder / "model.safetensors").write_text("old")
    with written_whole(folder) as new:
        assert [path.name for path in tmp_path.iterdir()] == ["volume"]
        assert new.parent == folder
        (new / "model.safetensors").write_text("new")
    assert written(folder) == {"model.safetensors": "new"}


@pytest.mark.parametrize("there", [False, True])
def test_weights_of_before_outlive_a_move_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    folder = tmp_path / "model"
    if there:
        folder.mkdir()
        (folder / "model-00001-of-00002.safetensors").write_text("old")
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "model.safetensors":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)

    def write() -> None:
        with written_whole(folder) as new:
            for name in ("config.json", "model.safetensors"):
                (new / name).write_text("new")

    with pytest.raises(OSError, match="No space"):
        write()
    left = {"model-00001-of-00002.safetensors": "old", "config.json": "new"}
    if there:
        assert written(folder) == left
    else:
        assert not list(tmp_path.iterdir())
