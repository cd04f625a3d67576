"""The text that is held out of training, of all sources together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import numpy as np

from lm.data.batches import Batches
from lm.data.cache import cached_folder, contents
from lm.data.fingerprint import digest, wide_hash
from lm.data.options import DataOptions
from lm.data.order import SequentialOrder
from lm.data.rows import rows_of
from lm.data.store import CONTENT, StoreWriter, TokenStore
from lm.data.tokenizers import Tokenizer
from lm.data.tokenizing import Tokenized, each_once
from lm.errors import UserError

_WRITTEN_AT_ONCE = 10_000


@dataclass(frozen=True, eq=False)
class Validation:
    """The held-out documents of all sources, every target once in `num_rows` rows.

    Attributes:
        batches: rows 0 .. num_rows-1, in stored order.
        stores: the held-out text; none where rows are generated.
        unigram_bits_per_byte: what the training text's token frequencies alone would need for the held-out text.
    """

    batches: Batches
    num_rows: int
    stores: tuple[TokenStore, ...] = ()
    unigram_bits_per_byte: float | None = None

    @property
    def num_bytes(self) -> int:
        """UTF-8 bytes of the held-out text; total loss / ln 2 / num_bytes is bits per byte."""
        return sum(store.num_bytes for store in self.stores)

    def text(self) -> bytes:
        """The UTF-8 that is to be predicted, concatenated: whole texts, and the answers of samples."""
        return b"".join(store.text.tobytes() for store in self.stores)


def held_out_of(options: DataOptions, found: Sequence[Tokenized], tokenizer: Tokenizer) -> list[TokenStore]:
    """What is held out of all sources, none empty: a document that several hold stands only in the first of them."""
    stores = [made.held_out for made in each_once(found) if made.held_out.num_documents]
    if len(stores) < 2:
        return stores
    made_of = [tokenizer.fingerprint, *(contents(store.folder.parent, CONTENT) for store in stores)]
    build = partial(_write_without_repeated, stores=stores, tokenizer=tokenizer)
    folder = cached_folder(options.cache_dir, f"held-out-{digest(made_of)}", build)
    others = [folder / f"{number:05}" for number in range(len(stores))]
    read = [TokenStore(other) if other.is_dir() else store for store, other in zip(stores, others, strict=True)]
    return [store for store in read if store.num_documents]


def _write_without_repeated(folder: Path, stores: Sequence[TokenStore], tokenizer: Tokenizer) -> None:
    """Writes those stores again that hold what an earlier one does, without that."""
    earlier: set[bytes] = set()
    for number, store in enumerate(stores):
        spans = pairwise(store.offsets.tolist())
        hashes = [wide_hash(store.tokens[begin:end].tobytes()) for begin, end in spans]
        if not earlier.isdisjoint(hashes):
            with StoreWriter(folder / f"{number:05}", tokenizer, keep_text=True) as writer:
                pairs = zip(store.documents(), hashes, strict=True)
                kept = (document for document, value in pairs if value not in earlier)
                while batch := list(islice(kept, _WRITTEN_AT_ONCE)):
                    writer.add_stored(batch)
        earlier.update(hashes)


def validation_of(options: DataOptions, found: Sequence[Tokenized], stores: Sequence[TokenStore]) -> Validation | None:
    """Rows of what is held out; None where nothing is to be. Raises UserError where there is no such text.

    stores: what `held_out_of` gives.
    """
    if options.validation.fraction == 0:
        return None
    made = each_once(found)
    if not stores:
        raise _nothing_held_out(options, made)
    rows = [rows_of([store], options.sequence_length) for store in stores]
    order = SequentialOrder([len(source) for source in rows])
    return Validation(
        batches=Batches(rows, order),
        num_rows=len(order),
        stores=tuple(stores),
        unigram_bits_per_byte=unigram_bits_per_byte([part.train_counts for part in made], stores),
    )


def _nothing_held_out(options: DataOptions, made: Sequence[Tokenized]) -> UserError:
    validation = options.validation
    without = "or set data.validation.fraction=0 to train without validation."
    if any(part.manifest.dropped for part in made):
        return UserError(
            f"data.sequence_length: {options.sequence_length} is too short for the held-out samples, whose answers "
            "are longer. Raise it, set data.validation.seed to hold out others, or data.validation.fraction=0."
        )
    shortest = [part.shortest for part in made if part.shortest is not None]
    if len(shortest) == len(made):
        return UserError(
            f"data.validation.max_bytes: {validation.max_bytes} is less than every document takes; set "
            f"{min(shortest)} or more, leave it out, {without}"
        )
    if any(part.count < part.total for part in made):
        return UserError(
            f"data.shards: {options.shards}: nothing is held out of the first shards of any source. Raise it, set "
            f"data.validation.seed to hold out others, {without}"
        )
    if validation.max_bytes is not None:
        return UserError(
            f"data.validation.max_bytes: {validation.max_bytes} is less than every held-out document takes; raise it, "
            f"leave it out, {without}"
        )
    return UserError(f"data.validation.fraction: so little text cannot be divided; add text, {without}")


def unigram_bits_per_byte(train: Sequence[np.ndarray], held_out: Sequence[TokenStore]) -> float:
    """Bits per byte that the held-out targets cost under the frequencies of training's targets.

    train: [V], how often each token is predicted, of one or more sources. This is what a model that ignores all context
    reaches. Frequencies get one added to each count, so that a token never seen in training has a price.
    """
    seen = np.sum(train, axis=0) + 1
    wanted = np.sum([store.counts for store in held_out], axis=0)
    bits = -wanted @ np.log2(seen / seen.sum())
    return float(bits / sum(store.num_bytes for store in held_out))
