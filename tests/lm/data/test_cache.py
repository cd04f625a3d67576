"""A cached folder is whole or absent, whatever dies or collides while it is made."""

import errno
import logging
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from lm.data import cache
from lm.data.cache import cached_folder, damage
from lm.errors import UserError

fork = multiprocessing.get_context("fork")


def build(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "data").write_bytes(bytes(range(256)) * 8)
    (folder / "note").write_text("made once")


def build_never(folder: Path) -> None:
    raise AssertionError("the cache should have been used")


def build_slowly_and_sign(folder: Path) -> None:
    build(folder)
    time.sleep(0.2)
    with (folder.parent / "signatures").open("a") as signatures:
        signatures.write(f"{os.getpid()}\n")


def build_half_and_die(folder: Path) -> None:
    (folder / "note").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_folder_is_built_once(tmp_path: Path) -> None:
    folder = cached_folder(tmp_path / "deep" / "cache", "thing", build)
    assert cached_folder(tmp_path / "deep" / "cache", "thing", build_never) == folder
    assert damage(folder) is None
    assert (folder / "note").read_text() == "made once"


@pytest.mark.parametrize("name", ["inner/data", "note", "manifest.json"])
@pytest.mark.parametrize("harm", ["truncate", "flip", "remove"])
def test_a_damaged_folder_is_named_and_built_again(
    tmp_path: Path, name: str, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = cached_folder(tmp_path, "thing", build) / name
    content = path.read_bytes()
    if harm == "truncate":
        path.write_bytes(content[: len(content) // 2])
    elif harm == "flip":
        middle = content.index(b'"sha256": "') + 12 if name == "manifest.json" else len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.unlink()
    if path.exists():
        os.utime(path, (2**31, 2**31))  # clocks of file systems tick slowly: this may be the tick of the build
    with caplog.at_level(logging.WARNING):
        folder = cached_folder(tmp_path, "thing", build)
    assert damage(folder) is None
    assert "thing' is damaged" in caplog.text
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["thing", "thing.lock"]


def test_checksums_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cached_folder(tmp_path, "thing", build)
    read: list[str] = []
    whole = cache._checksum
    monkeypatch.setattr(cache, "_checksum", lambda path: read.append(path.name) or whole(path))
    assert cached_folder(tmp_path, "thing", build_never) == folder
    assert read == []
    os.utime(folder / "note", (1, 1))  # changed, for all that can be seen without reading
    assert damage(folder) is None
    assert sorted(read) == ["data", "note"]
    assert damage(folder) is None
    assert len(read) == 2


def test_a_file_cut_short_is_found_though_its_time_is_the_old_one(tmp_path: Path) -> None:
    note = cached_folder(tmp_path, "thing", build) / "note"
    before = note.stat()
    note.write_text("made")
    os.utime(note, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert damage(note.parent) == "note has 4 bytes instead of 9"


@pytest.mark.parametrize("content", [None, "", "[1", "{}"])
def test_a_lost_note_of_verification_costs_one_reading(tmp_path: Path, content: str | None) -> None:
    folder = cached_folder(tmp_path, "thing", build)
    (folder / "verified.json").unlink()
    if content is not None:
        (folder / "verified.json").write_text(content)
    assert cached_folder(tmp_path, "thing", build_never) == folder
    assert "note" in (folder / "verified.json").read_text()


def test_processes_at_once_build_once(tmp_path: Path) -> None:
    processes = [fork.Process(target=cached_folder, args=(tmp_path, "thing", build_slowly_and_sign)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert len((tmp_path / "signatures").read_text().split()) == 1
    assert damage(tmp_path / "thing") is None


def test_a_killed_build_leaves_nothing_that_would_be_believed(tmp_path: Path) -> None:
    process = fork.Process(target=cached_folder, args=(tmp_path, "thing", build_half_and_die))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "thing").exists()
    folder = cached_folder(tmp_path, "thing", build)
    assert (folder / "note").read_text() == "made once"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["thing", "thing.lock"]


def test_a_failed_build_cleans_up_and_keeps_its_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        cached_folder(tmp_path, "thing", build_never)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thing.lock"]


def test_a_cache_that_cannot_be_written_is_the_users_to_change(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"data\.cache_dir: .*file"):
        cached_folder(tmp_path / "file" / "cache", "thing", build)


@pytest.mark.parametrize("place", ["/proc/x", "/proc", "/proc/self/fd", "loop/x", "n" * 300])
def test_where_no_folder_or_file_can_be_made_it_is_the_users_to_change(place: str, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match=r"^data\.cache_dir: .* cannot be written: "):
        cached_folder(tmp_path / place, "thing", build)


def test_a_file_that_is_missing_elsewhere_is_not_the_caches(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        cached_folder(tmp_path / "cache", "thing", lambda folder: (tmp_path / "source").read_bytes())  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_takes_no_more_is_the_users_to_change(tmp_path: Path, fault: int) -> None:
    def build_in_vain(folder: Path) -> None:
        raise OSError(fault, os.strerror(fault))

    with pytest.raises(UserError, match=rf"^data\.cache_dir: .* cannot be written: {os.strerror(fault)}"):
        cached_folder(tmp_path, "thing", build_in_vain)


def test_a_cache_on_a_disk_without_locks_is_the_users_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(cache.fcntl, "flock", refuse)
    with pytest.raises(UserError, match=r"data\.cache_dir: .* does not lock files: Function not implemented"):
        cached_folder(tmp_path, "thing", build_never)
