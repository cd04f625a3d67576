"""A text as tokens that know how many bytes and words they stand for, so that a loss can be told per any of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from lm.errors import UserError


@dataclass(frozen=True, eq=False)
class Text:
    """A tokenized text.

    ids: [n] int64. bytes, words: [n] int64, UTF-8 bytes that end in each token, and words that do; they sum to those
    of the text.
    """

    ids: NDArray[np.int64]
    bytes: NDArray[np.int64]
    words: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def behind(self, prefix: int | None) -> Text:
        """The text behind one token of context that stands for no text, unless it begins with it anyway."""
        if prefix is None or (len(self) and self.ids[0] == prefix):
            return self
        before = (prefix, self.ids), (0, self.bytes), (0, self.words)
        return Text(*(np.concatenate(([first], rest)) for first, rest in before))

    def part(self, begin: int, end: int) -> Text:
        """Tokens [begin, end)."""
        return Text(self.ids[begin:end], self.bytes[begin:end], self.words[begin:end])


def read_text(tokenizer: PreTrainedTokenizerBase, text: str) -> Text:
    """The tokens of a text, without special ones.

    Raises UserError for tokenizers that cannot tell where their tokens stand.
    """
    if not tokenizer.is_fast:
        raise UserError(f"{tokenizer.name_or_path}: perplexity per byte needs a fast tokenizer, which this is not")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ends = list(accumulate((end for _, end in encoded["offset_mapping"]), max))
    if ends:
        ends[-1] = len(text)  # tokenizers may drop white space at the end, which is text all the same
    at = np.array([0, *ends], dtype=np.int64)
    ids = np.array(encoded["input_ids"], dtype=np.int64)
    return Text(ids, np.diff(_until(_utf8_sizes(text))[at]), np.diff(_until(_word_ends(text))[at]))


def prefix_token(tokenizer: PreTrainedTokenizerBase, name: str) -> int:
    """What stands before a text without context: bos, or eos where there is no bos.

    name: of the model, for the UserError that is raised where the tokenizer has neither.
    """
    found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if found is None:
        raise UserError(
            f"{name}: its tokenizer has neither a bos nor an eos token, so the first token of a text has nothing to be "
            "predicted from"
        )
    return int(found)


def joined(texts: Sequence[Text], separator: int | None) -> Text:
    """One stream of all texts, a token between them that stands for no text."""
    parts = [text if index == 0 else text.behind(separator) for index, text in enumerate(texts)]
    none = np.empty(0, dtype=np.int64)
    columns = ([getattr(part, name) for part in parts] for name in ("ids", "bytes", "words"))
    return Text(*(np.concatenate([none, *column]) for column in columns))


def pieces(texts: Sequence[Text], separator: int | None, length: int, count: int) -> list[Text]:
    """At most `count` pieces of `length` tokens, none overlapping: within one text each while there are such, spread
    over the texts evenly; then of the shorter texts joined.
    """
    within = [text.part(at, at + length) for text in texts for at in range(0, len(text) - length + 1, length)]
    if len(within) >= count:
        return [within[index * len(within) // count] for index in range(count)]
    short = [text for text in texts if len(text) < length]
    rest = joined(short, separator) if short else None
    places = range(0, len(rest) - length + 1, length) if rest is not None else ()
    return [*within, *(rest.part(at, at + length) for at in places if rest is not None)][:count]


def _until(amounts: NDArray[np.int64]) -> NDArray[np.int64]:
    """[n+1], the sums of what stands before each place."""
    return np.concatenate(([0], np.cumsum(amounts)))


def _utf8_sizes(text: str) -> NDArray[np.int64]:
    """[characters], bytes of each."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    return np.asarray(1 + (points[:, None] >= np.array([0x80, 0x800, 0x10000])).sum(1))


def _word_ends(text: str) -> NDArray[np.int64]:
    """[characters], 1 where a word (a run of anything but white space) ends."""
    ends = np.zeros(len(text), dtype=np.int64)
    ends[[word.end() - 1 for word in re.finditer(r"\S+", text)]] = 1
    return ends
