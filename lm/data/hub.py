"""Sources on the Hugging Face Hub, or in a folder laid out as one of its datasets, read by `datasets`.

What is kept is named by the commit that a revision stands for, so a dataset that changes on the Hub is another source,
and the same run file reads the same text. The Hub is asked for that at most every ten minutes, and where it cannot be
reached the commit that it named last counts: tokens that are there are trained on without a network.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from lm.data.cache import NotWritableError, cached_folder, writable
from lm.data.fingerprint import digest
from lm.data.options import SourceOptions
from lm.data.readers import Document, Part, Record, Unreadable
from lm.data.samples import samples_of
from lm.data.sharding import LARGEST, SMALLEST
from lm.data.source_options import HubOptions
from lm.data.sources import NOT_CONTENT, Source
from lm.data.tables import records_of
from lm.data.texts import texts_of
from lm.errors import UserError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FRESH_SECONDS = 600
_ROWS_AT_ONCE = 256
_SHARDS = "shards.json"
_SAID = 400
"""Characters of a library's message that are passed on."""
_CONNECTION = {"TransportError", "ConnectionError", "ClientConnectionError"}
"""Errors of httpx, requests and aiohttp, by name: which of them is used, and under which name it is installed, is the
libraries' own affair."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HubSource(Source):
    """A split of a dataset. Its files are the Hub's; parts are rows or, streamed, the dataset's own shards."""

    cache_dir: Path = Path(".cache/braid/data")

    @property
    def hub(self) -> HubOptions:
        """What is loaded."""
        assert self.options.hub is not None
        return self.options.hub

    @property
    def size(self) -> int:
        """Bytes of the text, as far as the dataset tells."""
        return sum(part.size for shard in self.shards for part in shard)

    def made_of(self) -> dict[str, Any]:
        """The dataset's commit, or what lies in its folder; and how it is read."""
        shards = {} if self.shard_bytes is None else {"shard_bytes": self.shard_bytes}
        excluded = NOT_CONTENT | {"hub"}
        return {
            "dataset": self._folder_content() or [self.options.path, self.commit],
            "hub": self.hub.model_dump(mode="json", exclude={"revision"}),
            "read_as": self.options.model_dump(mode="json", exclude=excluded),
            **shards,
        }

    def _folder_content(self) -> list[Any] | None:
        root = Path(self.options.path).expanduser()
        if not root.is_dir():
            return None
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return [[os.path.abspath(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]

    @cached_property
    def commit(self) -> str | None:
        """The commit that the revision stands for; None for a folder."""
        if Path(self.options.path).expanduser().is_dir():
            return None
        if self.hub.revision is not None and _COMMIT.fullmatch(self.hub.revision):
            return self.hub.revision
        known = self._known()
        if known and time.time() - self._record.stat().st_mtime < _FRESH_SECONDS:
            return known["commit"]
        try:
            commit = _ask_for_commit(self.options.path, self.hub.revision)
        except Exception as error:
            if not (known and _unreachable(error)):
                raise self._error(error) from error
            return self._go_on_with(known, "the Hub cannot be reached")
        try:
            self._note(commit, time.strftime("%Y-%m-%d %H:%M:%S"))
        except NotWritableError:
            if not known:
                raise
            return commit if commit == known["commit"] else self._go_on_with(known, "data.cache_dir cannot be written")
        return commit

    def _go_on_with(self, known: dict[str, str], reason: str) -> str:
        said = "%s: %s; going on with commit %s, which the Hub named on %s."
        _log.warning(said, self.key, reason, known["commit"], known["asked"])
        return known["commit"]

    @property
    def _record(self) -> Path:
        """Keeps the commit that the Hub named last."""
        return self.cache_dir / f"hub-{digest([self.options.path, self.hub.revision])}.json"

    def _known(self) -> dict[str, str] | None:
        """The commit that the Hub named last, and when it was asked."""
        try:
            known: dict[str, str] = json.loads(self._record.read_text())
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            return None
        return known

    def _note(self, commit: str, asked: str) -> None:
        """Raises NotWritableError."""
        own = self._record.with_suffix(f".{os.getpid()}")  # one rename, for processes that ask at once
        with writable(self.cache_dir):
            try:
                own.write_text(json.dumps({"commit": commit, "asked": asked}))
                own.replace(self._record)
            finally:
                own.unlink(missing_ok=True)

    def hold(self) -> None:
        """Lets the commit count for ten minutes more: tokenizing takes hours, and then all ranks of a run look."""
        known = self._known()
        if known and known["commit"] == self.commit:
            # Where it cannot be written, whoever looks next goes on with it whatever its age.
            with contextlib.suppress(NotWritableError):
                self._note(known["commit"], known["asked"])

    def open(self) -> None:
        """Loads the dataset, which processes that are forked then have."""
        _ = self.dataset

    @cached_property
    def dataset(self) -> Any:
        """The split, as `datasets` gives it."""
        builder = self._builder
        try:
            if self.hub.streaming:
                return builder.as_streaming_dataset(split=self.hub.split)
            builder.download_and_prepare()
            return builder.as_dataset(split=self.hub.split)
        except Exception as error:  # of many libraries below it
            raise self._error(error) from error

    @cached_property
    def _builder(self) -> Any:
        import datasets

        datasets.disable_progress_bars()
        path = os.path.expanduser(self.options.path)
        if Path(path, datasets.config.DATASET_STATE_JSON_FILENAME).exists():
            raise UserError(
                f"{self.key}.hub: '{path}' was written by save_to_disk, which load_dataset does not read: leave out "
                f"hub, and set {self.key}.path to '{path}/*.arrow'."
            )
        try:
            builder = datasets.load_dataset_builder(path, self.hub.config, revision=self.commit)
        except Exception as error:
            raise self._error(error) from error
        self._check(builder)
        return builder

    def _check(self, builder: Any) -> None:
        """Whether `datasets` gives what was asked for: what it cannot reach it replaces by any copy that it has."""
        from datasets.packaged_modules.cache.cache import Cache

        if self.commit is None:
            return
        found = builder.hash if self.hub.streaming else Path(builder.cache_dir).name
        if found != self.commit:
            use = f", or set {self.key}.hub.revision to {found} for that copy" if _COMMIT.fullmatch(found) else ""
            raise UserError(
                f"{self.key}.path: '{self.options.path}' cannot be loaded as of commit {self.commit}; all that "
                f"`datasets` has is another copy, '{builder.cache_dir}'. Call again where the Hub can be reached{use}. "
                "A copy that is taken even there has to be removed."
            )
        if isinstance(builder, Cache) and self.hub.config is None and builder.config.name != "default":
            raise UserError(
                f"{self.key}.hub.config: without the Hub nothing tells which configuration of '{self.options.path}' is "
                f"its default; `datasets` has a copy of {builder.config.name}: name it, if that is the one."
            )

    @cached_property
    def shards(self) -> tuple[tuple[Part, ...], ...]:
        """Rows of a dataset on disk; of one that is streamed, its own shards."""
        decisive = {name: value for name, value in self.made_of().items() if name != "read_as"}
        # Kept, so that whoever finds all tokens in the cache asks neither the Hub nor `datasets`.
        folder = cached_folder(self.cache_dir, f"shards-{digest(decisive)}", self._write_shards)
        name = Path(self.options.path)
        return tuple((Part(name, *numbers),) for numbers in json.loads((folder / _SHARDS).read_text()))

    def _write_shards(self, folder: Path) -> None:
        """Size, begin and end of each."""
        if self.hub.streaming:
            count = self.dataset.num_shards
            size = (self.dataset.info.dataset_size or 0) // count
            cuts = list(range(count + 1))
        else:
            rows, nbytes = len(self.dataset), self.dataset.data.nbytes
            wanted = self.shard_bytes or min(LARGEST, max(SMALLEST, nbytes // 512))
            count = max(1, min(rows, -(-nbytes // wanted)))
            size = nbytes // count
            cuts = [rows * number // count for number in range(count + 1)]
        (folder / _SHARDS).write_text(json.dumps([[size, begin, end] for begin, end in pairwise(cuts)]))

    def read(self, part: Part) -> Iterator[Document | Unreadable]:
        """What is found in a part."""
        records = self._streamed(part) if self.hub.streaming else self._rows(part)
        if isinstance(self.options, SourceOptions):
            return texts_of(records, self.options, self.key)
        return samples_of(records, self.options, self.key)

    def _chosen(self, dataset: Any) -> Any:
        fields = self.options.fields if isinstance(self.options, SourceOptions) else []
        names = dataset.column_names or []
        return dataset.select_columns(fields) if fields and set(fields) <= set(names) else dataset

    def _rows(self, part: Part) -> Iterator[Record | Unreadable]:
        rows = self._chosen(self.dataset).with_format("arrow")
        assert part.end is not None
        for begin in range(part.begin, part.end, _ROWS_AT_ONCE):
            yield from records_of(rows[begin : min(begin + _ROWS_AT_ONCE, part.end)], part.path, begin)

    def _streamed(self, part: Part) -> Iterator[Record | Unreadable]:
        from datasets import ArrowBasedBuilder

        shard = self._chosen(self.dataset).shard(num_shards=self.dataset.num_shards, index=part.begin)
        row, of = 0, f" of its shard {part.begin + 1}"
        try:
            if isinstance(self._builder, ArrowBasedBuilder):
                for rows in shard.with_format("arrow").iter(_ROWS_AT_ONCE):
                    yield from records_of(rows, part.path, row, of)
                    row += rows.num_rows
                return
            for number, values in enumerate(shard, 1):  # such as files of an archive
                yield Record(part.path, f"row {number}{of}", values, number)
        except Exception as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> UserError:
        """What to say of a failure of the libraries below."""
        name, said = self.options.path, " ".join(str(error).split())[:_SAID] or type(error).__name__
        if _unreachable(error):
            return UserError(
                f"{self.key}.path: the Hugging Face Hub cannot be reached for '{name}' ({said}). What is tokenized "
                "already is kept: call again and it goes on. Without a network: where there is one, run `hf download "
                f"{name} --repo-type dataset --local-dir DIR`, bring DIR here, and set {self.key}.path to it."
            )
        return UserError(
            f"{self.key}.path: `datasets` cannot load '{name}', config {self.hub.config or 'default'}, split "
            f"{self.hub.split}: {type(error).__name__}: {said}"
        )


def _ask_for_commit(path: str, revision: str | None) -> str:
    from huggingface_hub import HfApi

    commit = HfApi().dataset_info(path, revision=revision, timeout=20).sha
    assert commit is not None
    return str(commit)


def _unreachable(error: BaseException) -> bool:
    """Whether an error, or what it came from, is one of a connection."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    kinds = (ConnectionError, TimeoutError, socket.gaierror, OfflineModeIsEnabled, LocalEntryNotFoundError)
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, kinds) or not _CONNECTION.isdisjoint(kind.__name__ for kind in type(seen).__mro__):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
