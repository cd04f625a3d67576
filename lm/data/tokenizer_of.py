"""The tokenizer of a run: an existing one, or one trained on a sample of its sources."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lm.data.cache import cached_folder
from lm.data.fingerprint import digest
from lm.data.options import DataOptions, SentencePieceOptions
from lm.data.readers import Document
from lm.data.sentencepiece_training import sample_passages, train_sentencepiece
from lm.data.sources import Source
from lm.data.split import Split
from lm.data.tokenizers import Tokenizer, existing_tokenizer, load_tokenizer
from lm.data.tokenizing import FORMAT, Progress
from lm.errors import UserError


def tokenizer_of(options: DataOptions, sources: Sequence[Source], report: Progress) -> Tokenizer:
    """The tokenizer that the options name, trained unless it is in the cache.

    Raises:
        UserError: naming the key, a file that is none or text that gives none.
    """
    return existing_tokenizer(options.tokenizer) or _trained_tokenizer(options, sources, report)


def _trained_tokenizer(options: DataOptions, sources: Sequence[Source], report: Progress) -> Tokenizer:
    wanted = options.tokenizer
    assert isinstance(wanted, SentencePieceOptions)
    size = sum(source.size for source in sources)

    def documents() -> Iterator[Document]:
        done = 0
        for source in sources:
            split = Split.of(source, options.validation)
            for document in source.documents():
                done += len(document.utf8)
                report("sampling text for the tokenizer", done, max(done, size))
                yield from (part for part, held_out in split.parts(document) if not held_out)

    def build(folder: Path) -> None:
        passages = sample_passages(documents(), wanted.sample_bytes)
        report("training the tokenizer", 0, 0)
        if not passages:
            raise UserError("data.sources: no text is left to train a tokenizer on; lower data.validation.fraction.")
        train_sentencepiece(wanted, passages).save(folder)

    decisive = [FORMAT, wanted.model_dump(mode="json"), options.validation.model_dump(mode="json")]
    key = digest([*decisive, *(source.made_of() for source in sources)])
    return load_tokenizer(cached_folder(options.cache_dir.expanduser(), f"tokenizer-{key}", build))
