"""What counts as a source, in which order it is read, and how an unusable one is refused."""

import errno
import glob
import os
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.data.options import SourceOptions
from lm.data.readers import Unreadable
from lm.data.sources import Source, find_source, would_find
from lm.errors import UserError


def find(path: Path | str, **options: str) -> Source:
    return find_source(SourceOptions.model_validate({"path": str(path), **options}), "data.sources.0")


def texts(source: Source) -> list[str]:
    return [document.text for document in source.documents()]


def test_a_folder_is_searched_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b/one.txt", "a/two.md", "c.py", "a/z.txt", "ignored.bin", ".git/hidden.txt", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(find(tmp_path)) == ["a/two.md", "a/z.txt", "b/one.txt", "c.py"]


def test_linked_folders_are_searched_and_loops_end(tmp_path: Path) -> None:
    for name in ("corpus/a/one.txt", "corpus/two.txt", "elsewhere/deep/three.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    corpus = tmp_path / "corpus"
    for name, target in (("b", "../elsewhere"), ("a/loop", ".."), ("c", "a"), ("b/deep/back", "../../corpus/b")):
        (corpus / name).symlink_to(target)
    expected = ["corpus/a/one.txt", "elsewhere/deep/three.txt", "corpus/two.txt"]
    assert texts(find(corpus)) == expected
    assert sorted(texts(find(f"{corpus}/**/*.txt"))) == sorted(expected)


PLACES = ("a.txt", "x/a.txt", "x/y/a.jsonl", "x/.y/a.md", "b.bin", "x/z.txt.gz", "../other/a.txt")


@pytest.mark.parametrize(
    "name", ["", "*.txt", "*", "**", "**/*.txt", "x/*.txt", "*/*/*", "x/a.txt", "x", "link", "[x]/*"]
)
def test_what_would_be_found_is_found(tmp_path: Path, name: str) -> None:
    """Asked of files before they are there, and of the files themselves."""
    corpus = tmp_path / "corpus"
    for folder in ("x/y", "x/.y", "../other"):
        (corpus / folder).mkdir(parents=True)
    (corpus / "link").symlink_to("x")
    options = SourceOptions.model_validate({"path": str(corpus / name)})
    paths = [corpus / place for place in PLACES]
    expected = {path.resolve() for path in paths if would_find(options, path)}
    for path in paths:
        path.touch()
    assert {file.path.resolve() for file in find(corpus / name).files} & {*map(Path.resolve, paths)} == expected
    assert expected


def test_a_folder_that_cannot_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "corpus" / "locked").mkdir(parents=True)
    (tmp_path / "corpus" / "one.txt").write_text("one")
    scandir = os.scandir

    def locked(path: str | Path = ".") -> Any:  # whoever runs the tests may be allowed to read everything
        if Path(path).name == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    for name in ("corpus", "corpus/**/*.txt", "*/**/*.txt", "*/l*/*.txt"):
        with pytest.raises(UserError, match=r"^data\.sources\.0\.path: the folder '.*/locked' cannot be read: Perm"):
            find(f"{tmp_path}/{name}")
    assert texts(find(f"{tmp_path}/corpus/*.txt")) == ["one"]


def test_a_glob_takes_what_it_matches_and_can_read(tmp_path: Path) -> None:
    for name in ("one.txt", "two.txt", "three.md", "four.bin"):
        (tmp_path / name).write_text(name)
    assert texts(find(f"{tmp_path}/t*")) == ["three.md", "two.txt"]
    assert texts(find(f"{tmp_path}/**/*.txt")) == ["one.txt", "two.txt"]


@given(
    files=st.sets(st.lists(st.sampled_from(["a", "b", "ab.txt", ".c", "c.md"]), min_size=1, max_size=4).map("/".join)),
    pattern=st.lists(st.sampled_from(["**", "*", "a*", "a", "*.txt"]), min_size=1, max_size=4)
    .map("/".join)
    .filter(glob.has_magic),
)
@settings(deadline=None, max_examples=100)
def test_a_glob_finds_what_pythons_does(files: set[str], pattern: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        for file in sorted(files):
            path = Path(name, file)
            if not any(parent.is_file() for parent in path.parents) and not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(file)
        matches = glob.glob(f"{name}/{pattern}", recursive=True)  # for */** it gives a file as if it were a folder
        found = {path for path in map(Path, (match for match in matches if match[-1] != "/")) if path.is_file()}
        readable = sorted(str(path) for path in found if path.suffix in {".txt", ".md"})
        if readable:
            assert [str(file.path) for file in find(f"{name}/{pattern}").files] == readable
        else:
            with pytest.raises(UserError):
                find(f"{name}/{pattern}")


def test_python_stdlib_is_this_pythons_own_modules() -> None:
    source = find("python-stdlib")
    root = Path(sysconfig.get_paths()["stdlib"])
    names = [file.path.relative_to(root).as_posix() for file in source.files]
    assert "textwrap.py" in names
    assert "json/decoder.py" in names
    assert names == sorted(names)
    assert all(name.endswith(".py") and "site-packages" not in name and "dist-packages" not in name for name in names)


def test_a_file_is_recognised_by_size_and_time_without_reading_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    before = find(path).made_of()
    assert find(path).made_of() == before
    path.write_text("after it")
    assert find(path).made_of() != before


def test_unreadable_files_are_skipped_in_a_folder_and_reported(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"abc\xff")
    (tmp_path / "good.txt").write_text("good")
    skipped: list[Unreadable] = []
    documents = list(find(tmp_path).documents(skipped.append))
    assert [document.text for document in documents] == ["good"]
    assert [(item.path.name, item.where) for item in skipped] == [("bad.txt", "byte 3")]


def test_an_unreadable_file_is_refused_when_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_bytes(b"abc\xff")
    with pytest.raises(UserError, match=r"data\.sources\.0\.path: .*bad\.txt.*byte 3.*UTF-8"):
        texts(find(path))


@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe"])
def test_a_corpus_without_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "only.txt").write_bytes(content)
    reason = "only.txt.*byte 1" if content else "empty"
    with pytest.raises(UserError, match=rf"data\.sources\.0\.path: .*no readable text.*{reason}"):
        texts(find(tmp_path))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("corpsu.txt", "does not exist.*Did you mean 'corpus.txt'"),
        ("*.parquet", "matches no file"),
        ("empty", "matches no file"),
        ("image.png", "not a kind that can be read.*.jsonl"),
    ],
)
def test_nothing_to_read_is_refused_before_reading(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "corpus.txt").write_text("text")
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=rf"data\.sources\.0\.path: .*{message}"):
        find(tmp_path / name)


def test_files_of_other_kinds_are_counted(tmp_path: Path) -> None:
    for name in ("a.txt", "b.md", "c.rst", "d.HTML", "e.html", "README", ".hidden.rst"):
        (tmp_path / name).write_text(name)
    for path in (tmp_path, tmp_path / "*"):
        source = find(path)
        assert [file.path.name for file in source.files] == ["a.txt", "b.md"]
        assert source.ignored_in_words() == "2 files (4 ignored: .html, .rst, no suffix)"
    assert find(tmp_path / "a.txt").ignored_in_words() == ""
    assert find("python-stdlib").ignored_in_words() == ""


@pytest.mark.parametrize("name", ["*.{md,txt}", "text.{md,txt}"])
def test_braces_are_said_not_to_work(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.txt").write_text("here")
    with pytest.raises(UserError, match="Braces are not understood"):
        find(tmp_path / name)
