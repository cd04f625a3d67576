"""A model's folder is written whole or not at all."""

from __future__ import annotations

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
