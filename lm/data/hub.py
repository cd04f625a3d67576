"""Sources on the Hugging Face Hub, or in a folder laid out as one of its datasets, read by `datasets`.

What is kept is named by the commit that a revision stands for, so a dataset that changes on the Hub is another source,
and the same run file reads the same text. The Hub is asked for that at most every ten minutes, and where it cannot be
reached the commit that it named last counts: tokens that are there are trained on without a network.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lm.data.fingerprint import digest
from lm.data.options import SourceOptions
from lm.data.readers import Document, Part, Record, Unreadable
from lm.data.samples import samples_of
from lm.data.sharding import LARGEST, SMALLEST
from lm.data.source_options import HubOptions
from lm.data.sources import NOT_CONTENT, Source
from lm.data.texts import texts_of
from lm.errors import UserError

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FRESH_SECONDS = 600
_ROWS_AT_ONCE = 256
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
        record = self._record
        if record.is_file() and time.time() - record.stat().st_mtime < _FRESH_SECONDS:
            return str(json.loads(record.read_text())["commit"])
        try:
            commit = _ask_for_commit(self.options.path, self.hub.revision)
        except Exception as error:
            if record.is_file() and _unreachable(error):
                known = json.loads(record.read_text())
                _log.warning(
                    "%s: the Hub cannot be reached; going on with commit %s, which it named on %s.",
                    self.key,
                    known["commit"],
                    known["asked"],
                )
                return str(known["commit"])
            raise self._error(error) from error
        record.parent.mkdir(parents=True, exist_ok=True)
        own = record.with_suffix(f".{os.getpid()}")  # one rename, for processes that ask at once
        own.write_text(json.dumps({"commit": commit, "asked": time.strftime("%Y-%m-%d %H:%M:%S")}))
        own.replace(record)
        return commit

    @property
    def _record(self) -> Path:
        """Keeps the commit that the Hub named last."""
        return self.cache_dir / f"hub-{digest([self.options.path, self.hub.revision])}.json"

    def hold(self) -> None:
        """Lets the commit count for ten minutes more: tokenizing takes hours, and then all ranks of a run look."""
        if self._record.is_file() and json.loads(self._record.read_text())["commit"] == self.commit:
            os.utime(self._record)

    @cached_property
    def dataset(self) -> Any:
        """The split, as `datasets` gives it."""
        import datasets

        datasets.disable_progress_bars()
        path = os.path.expanduser(self.options.path)
        try:
            return datasets.load_dataset(
                path, self.hub.config, split=self.hub.split, revision=self.commit, streaming=self.hub.streaming
            )
        except Exception as error:  # of many libraries below it
            raise self._error(error) from error

    @cached_property
    def shards(self) -> tuple[tuple[Part, ...], ...]:
        """Rows of a dataset on disk; of one that is streamed, its own shards."""
        name = Path(self.options.path)
        if self.hub.streaming:
            count = self.dataset.num_shards
            size = (self.dataset.info.dataset_size or 0) // count
            return tuple((Part(name, size, number, number + 1),) for number in range(count))
        rows, size = len(self.dataset), self.dataset.data.nbytes
        wanted = self.shard_bytes or min(LARGEST, max(SMALLEST, size // 512))
        count = max(1, min(rows, -(-size // wanted)))
        cuts = [rows * number // count for number in range(count + 1)]
        return tuple((Part(name, size // count, cuts[n], cuts[n + 1]),) for n in range(count))

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

    def _rows(self, part: Part) -> Iterator[Record]:
        rows = self._chosen(self.dataset).with_format("arrow")
        assert part.end is not None
        for begin in range(part.begin, part.end, _ROWS_AT_ONCE):
            for number, values in enumerate(rows[begin : min(begin + _ROWS_AT_ONCE, part.end)].to_pylist(), begin + 1):
                yield Record(part.path, f"row {number}", values, number)

    def _streamed(self, part: Part) -> Iterator[Record]:
        shard = self._chosen(self.dataset).shard(num_shards=self.dataset.num_shards, index=part.begin)
        try:
            for number, values in enumerate(shard, 1):
                yield Record(part.path, f"row {number} of its shard {part.begin + 1}", values, number)
        except UserError:
            raise
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
