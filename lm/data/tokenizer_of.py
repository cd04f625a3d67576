"""The tokenizer of a run: an existing one, or one trained on a sample of its sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from lm.data.cache import cached_folder
from lm.data.fingerprint import digest
from lm.data.options import DataOptions
from lm.data.sentencepiece_training import Drawn, sample_passages, train_sentencepiece
from lm.data.sources import Source
from lm.data.split import Split
from lm.data.tokenizer_options import EndsOptions, SentencePieceOptions
from lm.data.tokenizers import SentencePieceTokenizer, Tokenizer, existing_tokenizer, load_tokenizer
from lm.data.tokenizing import FORMAT
from lm.data.workers import Crew, reporting
from lm.errors import UserError


def tokenizer_of(options: DataOptions, sources: Sequence[Source], crew: Crew) -> Tokenizer:
    """The tokenizer that the options name, trained unless it is in the cache.

    Raises:
        UserError: naming the key, a file that is none or text that gives none.
    """
    return existing_tokenizer(options.tokenizer) or _trained_tokenizer(options, sources, crew)


def _trained_tokenizer(options: DataOptions, sources: Sequence[Source], crew: Crew) -> Tokenizer:
    wanted = options.tokenizer
    assert isinstance(wanted, SentencePieceOptions)

    def build(folder: Path) -> None:
        split = Split.joined(Split.of(source, options.validation) for source in sources)
        for source in sources:
            source.open()
        passages = _sampled(_Sampling(tuple(sources), split, wanted.sample_bytes), crew)
        if not passages:
            for source in sources:
                next(source.documents())  # says so, where there are none
            raise UserError("data.sources: no text is left to train a tokenizer on; lower data.validation.fraction.")
        crew.report("training the tokenizer", 0, 0)
        train_sentencepiece(wanted, passages).save(folder)

    training = wanted.model_dump(mode="json", exclude={*EndsOptions.model_fields})
    decisive = [FORMAT, training, options.validation.model_dump(mode="json")]
    key = digest([*decisive, *(source.made_of() for source in sources)])
    trained = load_tokenizer(cached_folder(options.cache_dir, f"tokenizer-{key}", build))
    assert isinstance(trained, SentencePieceTokenizer)
    return SentencePieceTokenizer(trained.model, "the trained tokenizer", wanted)


@dataclass(frozen=True)
class _Sampling:
    """Samples the training text of a shard; those of all sources are numbered one after another."""

    sources: tuple[Source, ...]
    split: Split
    sample_bytes: int

    @cached_property
    def shards(self) -> list[tuple[int, int]]:
        """The source and its own number for each shard."""
        return [(index, shard) for index, source in enumerate(self.sources) for shard in range(len(source.shards))]

    def __call__(self, number: int, report: Callable[..., None]) -> Drawn:
        index, shard = self.shards[number]
        documents = reporting(self.sources[index].shard(shard), report)
        parts = (part for document in documents for part in self.split.parts(document, self.split.place(document)))
        return sample_passages((part for part, held_out in parts if not held_out), self.sample_bytes)


def _sampled(sampling: _Sampling, crew: Crew) -> list[str]:
    """The sample of all shards."""
    size, done = sum(source.size for source in sampling.sources), 0

    def heard(job: int, figures: tuple[int, ...]) -> None:
        nonlocal done
        done += figures[0]
        crew.report("sampling text for the tokenizer", done, max(done, size))

    drawn = Drawn([], 1.0)
    for _, found in crew.run(sampling, range(len(sampling.shards)), heard):
        drawn = drawn.joined(found, sampling.sample_bytes)
    return drawn.passages
