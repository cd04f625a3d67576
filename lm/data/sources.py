"""Where documents come from: files, folders, globs, and the Python standard library on the user's disk.

Finding is separate from reading. `find_source` only looks at names, sizes and times, so a run file that cannot work
is refused at once and a cache can be recognised without opening a file. `Source.documents` then reads one document
at a time, in an order that does not depend on the file system.

What cannot be read (bytes that are not UTF-8, a broken record or archive) is refused in a file that the user named
and skipped in files that were merely found in a folder or by a glob. A record without the field that is looked for is
always refused: that is a wrong name in the run file, not a bad file.
"""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm.data.options import FileSourceOptions, SourceOptions
from lm.data.readers import RECORDS, TEXTS, Document, Unreadable, read_texts
from lm.data.samples import read_samples
from lm.errors import UserError, did_you_mean

PYTHON_STDLIB = "python-stdlib"
_NOT_THE_STDLIB = {"site-packages", "dist-packages"}
_TEXT_KINDS = (*TEXTS, ".jsonl", ".parquet")
_SAMPLE_KINDS = tuple(RECORDS)


@dataclass(frozen=True)
class TextFile:
    """One file of a source, as its folder entry describes it."""

    path: Path
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Source:
    """The files of one entry of `data.sources`, in their fixed order."""

    key: str
    options: FileSourceOptions
    files: tuple[TextFile, ...]
    named_by_user: bool
    ignored: tuple[Path, ...] = ()
    """What was found beside `files` and is of no kind that can be read."""

    @property
    def size(self) -> int:
        """Bytes on disk of all files."""
        return sum(file.size for file in self.files)

    def made_of(self) -> dict[str, Any]:
        """What decides the documents, as JSON: a cache made from equal values holds equal documents."""
        return {
            "files": [[os.path.abspath(file.path), file.size, file.mtime_ns] for file in self.files],
            "read_as": self.options.model_dump(mode="json", exclude={"path", "weight", "max_epochs"}),
        }

    def ignored_in_words(self) -> str:
        """Such as `12 files (7 ignored: .html, .rst)`; nothing where nothing was ignored."""
        if not self.ignored:
            return ""
        kinds = sorted({path.suffix.lower() or "no suffix" for path in self.ignored})
        return f"{len(self.files)} files ({len(self.ignored)} ignored: {', '.join(kinds)})"

    def documents(self, on_skip: Callable[[Unreadable], None] | None = None) -> Iterator[Document]:
        """Every readable, non-empty document, a `Sample` where the source is one of samples; `on_skip` hears of the
        unreadable ones.

        Raises:
            UserError: an unreadable document in a file that the user named, a missing field, or a source that yields
                no document at all.
        """
        first_skipped: Unreadable | None = None
        found = False
        for file in self.files:
            for item in self._read(file.path):
                if isinstance(item, Document):
                    found = True
                    yield item
                elif self.named_by_user:
                    raise UserError(f"{self.key}.path: {item}. Repair the file or name another.")
                else:
                    first_skipped = first_skipped or item
                    if on_skip is not None:
                        on_skip(item)
        if not found:
            reason = f"; {first_skipped}" if first_skipped else ": every file is empty"
            raise UserError(f"{self.key}.path: '{self.options.path}' holds no readable text{reason}.")

    def _read(self, path: Path) -> Iterator[Document | Unreadable]:
        if isinstance(self.options, SourceOptions):
            return read_texts(path, self.options.text_field, self.key)
        return read_samples(path, self.options, self.key)


def find_source(options: FileSourceOptions, key: str) -> Source:
    """The files that one source names, unopened; `key` is where the user named it. A folder called python-stdlib is
    `./python-stdlib`.

    Raises:
        UserError: nothing is there, or nothing of a supported kind.
    """
    kinds = _TEXT_KINDS if isinstance(options, SourceOptions) else _SAMPLE_KINDS
    path = Path(options.path).expanduser()
    named_by_user = options.path != PYTHON_STDLIB and path.is_file()
    found = [path] if named_by_user else _search(options.path, path, key)
    paths = found if named_by_user else [match for match in found if match.suffix.lower() in kinds]
    allowed = ", ".join(sorted(kinds))
    if not paths:
        raise UserError(
            f"{key}.path: '{options.path}' matches no file that can be read; allowed are {allowed}."
            f"{_braces(options.path)}"
        )
    if paths[0].suffix.lower() not in kinds:
        raise UserError(f"{key}.path: '{path}' is not a kind that can be read; allowed are {allowed}.")
    files = [TextFile(path, status.st_size, status.st_mtime_ns) for path in paths if (status := path.stat())]
    return Source(key, options, tuple(files), named_by_user, tuple(sorted({*found}.difference(paths))))


def _search(name: str, path: Path, key: str) -> list[Path]:
    """The modules of the standard library, or the files of any kind in a folder or matching a glob."""
    if name == PYTHON_STDLIB:
        return _below(Path(sysconfig.get_paths()["stdlib"]), {".py"}, _NOT_THE_STDLIB)
    if path.is_dir():
        return _below(path, None, set())
    if glob.has_magic(str(path)):
        matches = map(Path, sorted(glob.glob(str(path), recursive=True)))
        return [match for match in matches if match.is_file()]
    raise UserError(f"{key}.path: '{name}' does not exist.{_braces(name) or _near(path)}")


def _below(root: Path, suffixes: Set[str] | None, without: Set[str]) -> list[Path]:
    """Files of these kinds (none: of any) ordered by their path below `root`, without hidden ones (.git) or some
    folders."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and name not in without]
        found += [
            Path(folder, name)
            for name in names
            if (suffixes is None or os.path.splitext(name)[1].lower() in suffixes) and not name.startswith(".")
        ]
    return sorted((path for path in found if path.is_file()), key=lambda path: path.relative_to(root).as_posix())


def _braces(name: str) -> str:
    return " Braces are not understood: give each kind a source of its own." if "{" in name else ""


def _near(path: Path) -> str:
    names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, [*names, PYTHON_STDLIB]) or " Name a file, a folder, a glob, or python-stdlib."
