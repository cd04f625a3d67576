"""Where documents come from: files, folders, globs, and the Python standard library on the user's disk.

Finding is separate from reading. `find_source` only looks at names, sizes and times, so a run file that cannot work
is refused at once and a cache can be recognised without opening a file. `Source.documents` then reads one document
at a time, in an order that does not depend on the file system.

A source falls into shards by the sizes of its files, without regard to who will read them; `lm.data.sharding` cuts.

What cannot be read (bytes that are not UTF-8, a broken record or archive) is refused or skipped as `bad_records` says.
Left out, it is refused in a file that the user named and skipped in files that were merely found in a folder or by a
glob, and a record without the field that is looked for is always refused: that is a wrong name in the run file, not a
bad file.
"""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NoReturn

from lm.data.compression import kind_of
from lm.data.kinds import RECORDS, TEXTS
from lm.data.options import FileSourceOptions, SourceOptions
from lm.data.readers import Document, Part, Unreadable, is_filter
from lm.data.samples import read_samples
from lm.data.sharding import TextFile, shards_of
from lm.data.texts import read_texts
from lm.errors import UserError, did_you_mean

PYTHON_STDLIB = "python-stdlib"
_NOT_THE_STDLIB = {"site-packages", "dist-packages"}
_TEXT_KINDS = (*TEXTS, ".jsonl", ".parquet", ".arrow")
_SAMPLE_KINDS = tuple(RECORDS)
NOT_CONTENT = {"path", "weight", "max_epochs", "min_tokens", "longest"}
"""Options that decide how often documents are read, or where they lie, not what they say."""


@dataclass(frozen=True)
class Source:
    """The files of one entry of `data.sources`, in their fixed order."""

    key: str
    options: FileSourceOptions
    files: tuple[TextFile, ...]
    named_by_user: bool
    ignored: tuple[Path, ...] = ()
    """What was found beside `files` and is of no kind that can be read."""
    shard_bytes: int | None = None
    """Bytes on disk of one shard; None chooses by the size of the source."""

    @property
    def size(self) -> int:
        """Bytes on disk of all files."""
        return sum(file.size for file in self.files)

    @cached_property
    def shards(self) -> tuple[tuple[Part, ...], ...]:
        """What each shard reads, in order."""
        return shards_of(self.files, isinstance(self.options, SourceOptions), self.shard_bytes)

    def made_of(self) -> dict[str, Any]:
        """What decides the documents, as JSON: a cache made from equal values holds equal documents."""
        shards = {} if self.shard_bytes is None else {"shard_bytes": self.shard_bytes}
        return {"files": [[os.path.abspath(file.path), file.size, file.mtime_ns] for file in self.files]} | {
            "read_as": self.options.model_dump(mode="json", exclude=NOT_CONTENT | {"hub"}),
            **shards,
        }

    def ignored_in_words(self) -> str:
        """Such as `12 files (7 ignored: .html, .rst)`; nothing where nothing was ignored."""
        if not self.ignored:
            return ""
        kinds = sorted({path.suffix.lower() or "no suffix" for path in self.ignored})
        return f"{len(self.files)} files ({len(self.ignored)} ignored: {', '.join(kinds)})"

    def hold(self) -> None:
        """Lets whoever looks next find what was found now, where a source may change by itself."""

    def open(self) -> None:
        """Opens what is read, where that takes long: once, before processes share the reading."""

    def documents(self, on_skip: Callable[[Unreadable], None] | None = None) -> Iterator[Document]:
        """Every readable, non-empty document, a `Sample` where the source is one of samples; `on_skip` hears of the
        others.

        Raises:
            UserError: what is not to be skipped, or a source that yields no document at all.
        """
        skipped: dict[str, Unreadable] = {}  # the first of each kind
        found = False

        def skip(item: Unreadable) -> None:
            skipped.setdefault(item.kind, item)
            if on_skip is not None:
                on_skip(item)

        for number in range(len(self.shards)):
            for document in self.shard(number, skip):
                found = True
                yield document
        if not found:
            raise self.nothing(skipped, *map(str, skipped.values()))

    def shard(self, number: int, on_skip: Callable[[Unreadable], None] | None = None) -> Iterator[Document]:
        """The documents of one shard, as `documents` gives them; there may be none."""
        for part in self.shards[number]:
            for item in self.read(part):
                if isinstance(item, Document):
                    yield item
                else:
                    self.leave_out(item, on_skip)

    def leave_out(self, item: Unreadable, on_skip: Callable[[Unreadable], None] | None = None) -> None:
        """Lets `on_skip` hear of what cannot be used. Raises UserError where that is to be refused."""
        if self._refuses(item):
            raise UserError(
                f"{self.key}.path: {item}. Repair the file or name another, or set {self.key}.bad_records to "
                "skip to leave out what cannot be read."
            )
        if on_skip is not None:
            on_skip(item)

    def nothing(self, kinds: Iterable[str], *skipped: str) -> UserError:
        """What to say where no document is found. kinds: of what was skipped; skipped: some of that, in words."""
        reason = f"; {skipped[0]}" if skipped else ": every file is empty"
        if any(map(is_filter, kinds)):
            reason = f"; {skipped[0]}" if skipped else ""
            return UserError(f"{self.key}.filters: nothing of '{self.options.path}' is left{reason}.")
        return UserError(f"{self.key}.path: '{self.options.path}' holds no readable text{reason}.")

    def _refuses(self, item: Unreadable) -> bool:
        if is_filter(item.kind):
            return False
        if self.options.bad_records is None:
            return self.named_by_user and item.kind != "empty"
        return self.options.bad_records == "refuse"

    def read(self, part: Part) -> Iterator[Document | Unreadable]:
        """What is found in a part of a file."""
        if isinstance(self.options, SourceOptions):
            return read_texts(part, self.options, self.key)
        return read_samples(part, self.options, self.key)


def find_source(options: FileSourceOptions, key: str, shard_bytes: int | None = None) -> Source:
    """The files that one source names, unopened; `key` is where the user named it. A folder called python-stdlib is
    `./python-stdlib`.

    Raises:
        UserError: nothing is there, or nothing of a supported kind.
    """
    if options.hub is not None:
        raise ValueError(f"{key} is a dataset of the Hub: ask lm.data.hub")
    kinds = _kinds(options)
    path = Path(options.path).expanduser()
    named_by_user = options.path != PYTHON_STDLIB and path.is_file()
    found = [path] if named_by_user else _search(options.path, path, key)
    paths = found if named_by_user else [match for match in found if kind_of(match) in kinds]
    allowed = ", ".join(sorted(kinds))
    if not paths:
        raise UserError(
            f"{key}.path: '{options.path}' matches no file that can be read; allowed are {allowed}."
            f"{_braces(options.path)}"
        )
    if kind_of(paths[0]) not in kinds:
        raise UserError(f"{key}.path: '{path}' is not a kind that can be read; allowed are {allowed}.")
    files = [TextFile(path, status.st_size, status.st_mtime_ns) for path in paths if (status := path.stat())]
    return Source(key, options, tuple(files), named_by_user, tuple(sorted({*found}.difference(paths))), shard_bytes)


def would_find(options: FileSourceOptions, path: Path) -> bool:
    """Whether a file at `path`, which need not be there yet, would be read. Links within what is searched are not seen
    through."""
    named = Path(options.path).expanduser()
    if options.hub is not None or options.path == PYTHON_STDLIB or kind_of(path) not in _kinds(options):
        return False
    fixed = next((number for number, part in enumerate(named.parts) if glob.has_magic(part)), len(named.parts))
    wanted = ("**",) if named.is_dir() else named.parts[fixed:]
    root = os.path.realpath(named if named.is_dir() else Path(*named.parts[:fixed]))
    below = os.path.relpath(os.path.realpath(path), root)
    hidden = any(part.startswith(".") for part in Path(below).parts)  # as what lies elsewhere is: behind `..`
    return _fits(Path(below), wanted) and not hidden


def _kinds(options: FileSourceOptions) -> tuple[str, ...]:
    return _TEXT_KINDS if isinstance(options, SourceOptions) else _SAMPLE_KINDS


def _search(name: str, path: Path, key: str) -> list[Path]:
    """The modules of the standard library, or the files of any kind in a folder or matching a glob."""
    if name == PYTHON_STDLIB:
        return _below(Path(sysconfig.get_paths()["stdlib"]), key, {".py"}, _NOT_THE_STDLIB)
    if path.is_dir():
        return _below(path, key)
    if glob.has_magic(str(path)):
        return _matching(path, key)
    raise UserError(f"{key}.path: '{name}' does not exist.{_braces(name) or _near(path)}")


def _matching(pattern: Path, key: str) -> list[Path]:
    """Files that match a glob, in order. What `**` stands for is searched as a folder is: no linked one twice.

    Raises:
        UserError: a folder that cannot be read, in which a wildcard stands for names.
    """
    parts = pattern.parts
    at = parts.index("**") if "**" in parts else len(parts)
    for number in range(at):
        if glob.has_magic(parts[number]):
            for folder in filter(os.path.isdir, glob.glob(str(Path(*parts[:number])))):
                _require_readable(folder, key)  # glob would leave it out
    matches = map(Path, sorted(glob.glob(str(Path(*parts[:at])))))
    if at == len(parts):
        return [match for match in matches if match.is_file()]
    seen: set[str] = set()
    found = ((root, path) for root in filter(Path.is_dir, matches) for path in _below(root, key, seen=seen))
    return sorted((path for root, path in found if _fits(path.relative_to(root), parts[at:])), key=str)


def _fits(path: Path, wanted: Sequence[str]) -> bool:
    """Whether a path matches a glob, part by part; `**` is any number of them, at the end one or more."""
    parts = path.parts
    if not wanted or not parts:
        return not wanted and not parts
    if wanted[0] == "**":
        return len(wanted) == 1 or _fits(path, wanted[1:]) or _fits(Path(*parts[1:]), wanted)
    return fnmatchcase(parts[0], wanted[0]) and _fits(Path(*parts[1:]), wanted[1:])


def _folders(root: Path, key: str, without: Set[str], seen: set[str]) -> Iterator[tuple[str, list[str]]]:
    """The folders from `root` down, linked ones too and each once, with the names of their files; no hidden ones (.git)
    and none of some names. seen: where they really are; none of these is entered again.

    Raises:
        UserError: one that cannot be read.
    """
    if os.path.realpath(root) in seen:
        return
    seen.add(os.path.realpath(root))
    for folder, subfolders, names in os.walk(root, onerror=partial(_refuse, key), followlinks=True):
        yield folder, names
        entered = []
        for name in sorted(subfolders):
            real = os.path.realpath(os.path.join(folder, name))
            if not name.startswith(".") and name not in without and real not in seen:
                seen.add(real)
                entered.append(name)
        subfolders[:] = entered


def _require_readable(folder: str, key: str) -> None:
    try:
        os.scandir(folder).close()
    except OSError as error:
        _refuse(key, error)


def _refuse(key: str, error: OSError) -> NoReturn:
    raise UserError(
        f"{key}.path: the folder '{error.filename}' cannot be read: {error.strerror}. Allow it to be read, or name "
        "what is to be read without it."
    )


def _below(
    root: Path,
    key: str,
    suffixes: Set[str] | None = None,
    without: Set[str] = frozenset(),
    seen: set[str] | None = None,
) -> list[Path]:
    """Files of these kinds (none: of any) ordered by their path below `root`, without hidden ones or some folders."""
    found = []
    for folder, names in _folders(root, key, without, set() if seen is None else seen):
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
