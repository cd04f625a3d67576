"""Training a SentencePiece model on a sample of the documents, the same sample every time.

The sample is the passages with the smallest hashes, as many as fit: all parts of all sources are in it in proportion
to their size, and the order of files does not matter. Passages keep their line ends and indentation, because pieces
such as `):` with its newline, or eight spaces, are what makes code short.
"""

from __future__ import annotations

import heapq
import io
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import sentencepiece

from lm.data.fingerprint import unit_hash
from lm.data.readers import Document
from lm.data.sentencepiece_model import round_scores
from lm.data.tokenizer_options import SentencePieceOptions
from lm.data.tokenizers import SentencePieceTokenizer
from lm.errors import UserError

_PASSAGE_CHARACTERS = 2000
# Unigram training sums floats thread by thread: another number would train another model on another machine.
_TRAINING_THREADS = 4


class Drawn(NamedTuple):
    """Passages with the smallest hashes, the smallest last: below `bound`, unless there is but one."""

    passages: list[str]
    bound: float

    def joined(self, other: Drawn, sample_bytes: int) -> Drawn:
        """What is drawn from the text of both."""
        return _draw([*self.passages, *other.passages], sample_bytes, min(self.bound, other.bound))


def sample_passages(documents: Iterable[Document], sample_bytes: int) -> Drawn:
    """A fair sample of passages of the documents, at most `sample_bytes` of UTF-8 in all (but at least one passage).

    It does not depend on their order. Memory is that of the sample, however much text passes by.
    """
    texts = (document.text for document in documents)
    size = _PASSAGE_CHARACTERS
    return _draw((text[start : start + size] for text in texts for start in range(0, len(text), size)), sample_bytes)


def _draw(passages: Iterable[str], sample_bytes: int, bound: float = 1.0) -> Drawn:
    largest_first: list[tuple[float, str, int]] = []
    sampled = 0
    for passage in passages:
        utf8 = passage.encode()
        place = unit_hash(utf8, "tokenizer sample", 0)
        if place > bound or (place == bound and largest_first):
            continue
        heapq.heappush(largest_first, (-place, passage, len(utf8)))
        sampled += len(utf8)
        # Equal passages go together, lest it matter which came first.
        while (sampled > sample_bytes or -largest_first[0][0] == bound) and len(largest_first) > 1:
            negative, _, size = heapq.heappop(largest_first)
            bound, sampled = -negative, sampled - size
    return Drawn([passage for _, passage, _ in sorted(largest_first)], bound)


def train_sentencepiece(options: SentencePieceOptions, passages: Sequence[str]) -> SentencePieceTokenizer:
    """A model that normalizes nothing: what it encodes, it decodes.

    Raises:
        UserError: the text cannot give a vocabulary of the wanted size.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(passages),
            model_writer=model,
            vocab_size=options.vocab_size,
            model_type=options.model_type,
            byte_fallback=options.byte_fallback,
            split_digits=options.split_digits,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=8 * _PASSAGE_CHARACTERS,
            num_threads=_TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"data.tokenizer.vocab_size: {_remedy(options, str(error))}") from error
    return SentencePieceTokenizer(round_scores(model.getvalue()), "the trained tokenizer")


def _remedy(options: SentencePieceOptions, message: str) -> str:
    if limit := re.search(r"too high.*<= (\d+)", message):
        return (
            f"{options.vocab_size} pieces cannot be found in this text; set at most {limit[1]}, "
            "add text, or raise data.tokenizer.sample_bytes."
        )
    if required := re.search(r"\d+ vs (\d+)", message):
        return f"{options.vocab_size} is less than the characters of this text need; set at least {required[1]}."
    return f"SentencePiece cannot train {options.vocab_size} pieces on this text: {message}"
