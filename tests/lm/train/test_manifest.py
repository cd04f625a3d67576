from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.errors import UserError
from lm.train import manifest
from lm.train.tensor_file import write_text


def write(root: Path, step: int, files: dict[str, str] | None = None) -> Path:
    folder = manifest.begin(root, step)
    texts = files or {"a.json": f"step {step}", "b.json": "x" * 300}
    return manifest.commit(folder, {name: write_text(folder / name, text) for name, text in texts.items()})


def test_a_checkpoint_is_there_only_once_it_is_whole(tmp_path: Path) -> None:
    write(tmp_path, 5)
    folder = manifest.begin(tmp_path, 10)
    write_text(folder / "a.json", "half of it")
    assert [manifest.step_of(path) for path in manifest.checkpoints(tmp_path)] == [5]
    write(tmp_path, 10)
    assert [manifest.step_of(path) for path in manifest.checkpoints(tmp_path)] == [10, 5]
    assert not list(tmp_path.glob("*.tmp"))


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_every_flipped_bit_and_every_cut_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("checkpoints")
    folder = write(root, 1)
    assert manifest.damage(folder) is None
    victim = folder / data.draw(st.sampled_from(["a.json", "b.json"]))
    content = bytearray(victim.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    victim.write_bytes(content)
    assert victim.name in (manifest.damage(folder) or "")


def test_reading_gives_a_sign_at_every_file(tmp_path: Path) -> None:
    signs: list[None] = []
    assert manifest.damage(write(tmp_path, 1), pulse=lambda: signs.append(None)) is None
    assert len(signs) == 2


def test_missing_files_and_manifests_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / "b.json").unlink()
    assert manifest.damage(folder) == "b.json is missing"
    (folder / manifest.MANIFEST).write_text('{"format": 1, "files"')
    assert manifest.damage(folder) == "manifest.json cannot be read"
    (folder / manifest.MANIFEST).unlink()
    assert manifest.damage(folder) == "manifest.json is missing"


def test_another_format_is_not_damage(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    path = folder / manifest.MANIFEST
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(UserError, match="format 2, and this version of braid reads format 1"):
        manifest.damage(folder)


def test_a_file_that_the_disk_does_not_give_is_not_damage(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / "a.json").unlink()
    (folder / "a.json").mkdir()
    with pytest.raises(UserError, match=r"a\.json cannot be read: Is a directory"):
        manifest.damage(folder)


def test_a_damaged_one_is_kept_until_a_later_one_is_written(tmp_path: Path) -> None:
    aside = manifest.set_aside(write(tmp_path, 20))
    write(tmp_path, 18)
    manifest.tidy(tmp_path, manifest.checkpoints(tmp_path)[2:])
    assert aside.exists()
    write(tmp_path, 20)
    manifest.tidy(tmp_path, manifest.checkpoints(tmp_path)[2:])
    assert not aside.exists()


def test_ranks_share_the_checking(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / "b.json").write_text("changed")
    found = [manifest.damage(folder, share, 2) for share in range(2)]
    assert sum(fault is not None for fault in found) == 1


def test_the_newest_are_kept_and_leftovers_go(tmp_path: Path) -> None:
    for step in (1, 2, 30, 100):
        write(tmp_path, step)
    manifest.begin(tmp_path, 101)
    manifest.set_aside(manifest.folder_of(tmp_path, 2))
    manifest.tidy(tmp_path, manifest.checkpoints(tmp_path)[2:])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000030", "step-000100"]


def test_a_checkpoint_can_be_written_again(tmp_path: Path) -> None:
    write(tmp_path, 1)
    folder = write(tmp_path, 1, {"c.json": "new"})
    assert manifest.damage(folder) is None
    assert not (folder / "a.json").exists()
