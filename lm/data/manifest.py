"""What is in the shards of a source, in numbers that add up: over shards, over nodes, over sources."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np

from lm.data.readers import is_filter
from lm.data.store import TokenStore
from lm.data.tokenizers import Tokenizer

MAX_EXAMPLES = 20


@dataclass(frozen=True)
class Manifest:
    """Counts of what is trained on, and of what is not.

    Attributes:
        documents: that are trained on.
        tokens: of these, bos and eos included.
        targets: tokens of these that are predicted.
        ends: targets that end a document and spell nothing.
        bytes: UTF-8 that the targets spell.
        unknown: targets that stand for text without tokens.
        lengths: documents of 2^n to 2^(n+1) - 1 tokens, for n = 0, 1, ...
        held_out: documents that are held out, before any bound on their bytes.
        cut, dropped: samples longer than a row: prompts cut, samples dropped; held out ones included.
        duplicates: documents left out as equal to an earlier one.
        skipped: how many records or files were left out, by kind.
        examples: the first of these that could not be read, in words.
    """

    documents: int = 0
    tokens: int = 0
    targets: int = 0
    ends: int = 0
    bytes: int = 0
    unknown: int = 0
    lengths: tuple[int, ...] = ()
    held_out: int = 0
    cut: int = 0
    dropped: int = 0
    duplicates: int = 0
    skipped: Mapping[str, int] = field(default_factory=dict)
    examples: tuple[str, ...] = ()

    def __add__(self, other: Manifest) -> Manifest:
        summed = {
            name: getattr(self, name) + getattr(other, name)
            for name, value in asdict(self).items()
            if isinstance(value, int)
        }
        return Manifest(
            **summed,
            lengths=tuple(a + b for a, b in zip_longest(self.lengths, other.lengths, fillvalue=0)),
            skipped=dict(sorted((Counter(self.skipped) + Counter(other.skipped)).items())),
            examples=(self.examples + other.examples)[:MAX_EXAMPLES],
        )

    @property
    def bytes_per_token(self) -> float:
        """Bytes of predicted text per predicted token, the ends of documents not counted."""
        return self.bytes / max(1, self.targets - self.ends)

    @property
    def unknown_rate(self) -> float:
        """Share of the targets that stand for text without tokens."""
        return self.unknown / max(1, self.targets)

    @property
    def unreadable(self) -> int:
        """What was left out for a fault of its own: neither empty nor filtered."""
        return sum(count for kind, count in self.skipped.items() if kind != "empty" and not is_filter(kind))

    def to_json(self) -> dict[str, Any]:
        """All fields, and the two rates that are computed from them."""
        return asdict(self) | {"bytes_per_token": self.bytes_per_token, "unknown_rate": self.unknown_rate}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Manifest:
        """What `to_json` gave."""
        # Every document had an end before there was a choice.
        values = {"ends": values["documents"], **values}
        fields = {name: values[name] for name in cls.__dataclass_fields__}
        return cls(**fields | {"lengths": tuple(values["lengths"]), "examples": tuple(values["examples"])})


def counted(store: TokenStore, tokenizer: Tokenizer) -> Manifest:
    """What a store of training documents adds."""
    unk_id = tokenizer.unk_id
    lengths = np.diff(store.offsets)
    return Manifest(
        documents=store.num_documents,
        tokens=store.num_tokens,
        targets=store.num_targets,
        ends=store.num_documents if store.has_targets or tokenizer.ends_texts else 0,
        bytes=store.num_bytes,
        unknown=0 if unk_id is None else int(store.counts[unk_id]),
        lengths=tuple(np.bincount(np.log2(lengths).astype(np.int64)).tolist()) if len(lengths) else (),
    )
