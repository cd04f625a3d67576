"""Perplexity of texts that the user names, by the protocols that they choose, at every length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from eval.key_tokens import key_tokens, long_perplexity, transferred
from eval.measuring import Measurement
from eval.model import Model
from eval.options import PYTHON_DOCUMENTATION, EvaluationOptions
from eval.perplexity import (
    LONGLORA_STRIDE,
    NoFigureError,
    last_tokens,
    loss_by_context,
    rolling,
    strided,
    window_mean,
)
from eval.tasks import open_haystack
from eval.tasks.haystack import local_texts
from eval.text import Text, joined, prefix_token, read_text
from lm.data.fingerprint import content_digest
from lm.errors import UserError, did_you_mean
from lm.hf.positions import learned_positions


@dataclass(frozen=True, eq=False)
class Excerpt:
    """The beginning of a document: its tokens, and what they stand for in UTF-8."""

    text: Text
    content: bytes

    def pieces(self, length: int) -> list[Text]:
        """All that `length` tokens long can be cut from it without overlap."""
        return [self.text.part(at, at + length) for at in range(0, len(self.text) - length + 1, length)]

    def rows(self, length: int) -> list[str]:
        """The same as strings. Cut and encoded alone one may have a token more or less than it had in its document."""
        ends = np.cumsum(self.text.bytes)[length - 1 :: length].tolist()
        return [self.content[begin:end].decode(errors="ignore") for begin, end in pairwise([0, *ends])]


@dataclass(frozen=True)
class Corpus:
    """The documents behind one name."""

    name: str
    documents: Sequence[str]

    @cached_property
    def digest(self) -> str:
        return content_digest(document.encode() for document in self.documents)

    def beginning(self, model: Model, tokens: int) -> list[Excerpt]:
        """The first so many tokens of the documents, the last of them cut; documents of one token are left out."""
        found: list[Excerpt] = []
        for document in self.documents:
            if tokens < 2:
                break
            text = read_text(model.tokenizer, document)
            if len(text) > 1:
                text = text.part(0, min(len(text), tokens))
                found.append(Excerpt(text, document.encode()[: int(text.bytes.sum())]))
                tokens -= len(text)
        return found


def open_corpus(path: Path, options: EvaluationOptions) -> Corpus:
    """The documents of a file, folder or glob (kinds as in `data.sources`), or those that come with Python.

    Raises UserError where that cannot be read; see `local_texts`.
    """
    if path == PYTHON_DOCUMENTATION:
        haystack = open_haystack()
        return Corpus(haystack.name, [haystack.text])
    return Corpus(str(path), local_texts(path, "perplexity", options))


@dataclass(frozen=True)
class Reading:
    """A corpus to be read at a length, one of several.

    excerpts: what is read of it. evaluator: the model that says which tokens are key.
    """

    model: Model
    evaluator: Model
    corpus: Corpus
    excerpts: Sequence[Excerpt]
    length: int
    lengths: Sequence[int]

    @property
    def prefix(self) -> int:
        """What stands before a text; see `prefix_token`."""
        return prefix_token(self.model.tokenizer, self.model.name)

    @property
    def texts(self) -> list[Text]:
        return [excerpt.text for excerpt in self.excerpts]

    @property
    def tokens(self) -> int:
        return sum(map(len, self.texts))

    def pieces(self, length: int) -> list[Text]:
        """All that `length` tokens long can be cut from single documents without overlap.

        Raises NoFigureError where no document is that long.
        """
        found = [piece for excerpt in self.excerpts for piece in excerpt.pieces(length)]
        if not found:
            raise NoFigureError(f"no document has {length} tokens")
        return found


def _strided(reading: Reading) -> Mapping[str, Any]:
    stride = max(1, reading.length // 2)
    return strided(reading.model, reading.texts, reading.length, stride, reading.prefix).to_json()


def _disjoint(reading: Reading) -> Mapping[str, Any]:
    found = strided(reading.model, reading.texts, reading.length, reading.length, reading.prefix)
    return found.to_json() | {"protocol": f"disjoint, window {reading.length}"}


def _rolling(reading: Reading) -> Mapping[str, Any]:
    return rolling(reading.model, reading.texts, reading.length, reading.prefix).to_json()


def _window_mean(reading: Reading) -> Mapping[str, Any]:
    return window_mean(reading.model, joined(reading.texts, reading.prefix), reading.length).to_json()


def _last_tokens(reading: Reading) -> Mapping[str, Any]:
    longest, last = max(reading.lengths), max(1, min(reading.lengths) // 2)
    return last_tokens(reading.model, reading.pieces(longest), [reading.length], last)[0].to_json()


def _by_position(reading: Reading) -> Mapping[str, Any]:
    rows = reading.pieces(reading.length)
    return {"by_position": [asdict(part) for part in loss_by_context(reading.model, rows)], "rows": len(rows)}


def _key_tokens(reading: Reading) -> Mapping[str, Any]:
    evaluator = reading.evaluator
    rows = [row for excerpt in reading.excerpts for row in excerpt.rows(reading.length)]
    cut = [[read_text(one.tokenizer, row) for one in (evaluator, reading.model)] for row in rows]
    pairs = [pair for pair in cut if min(map(len, pair)) > 1]
    if not pairs:
        raise NoFigureError(f"no document has a row of {reading.length} tokens, two at the least")
    theirs, ours = zip(*pairs, strict=True)
    _require_room(evaluator, theirs)
    _require_room(reading.model, ours)
    short = max(2, reading.length // 4)
    masks = transferred(key_tokens(evaluator, theirs, short, max(1, short // 4)), theirs, ours)
    if not any(mask.any() for mask in masks):
        raise NoFigureError(f"no token is key by {evaluator.name}: none gains enough from more context")
    return long_perplexity(reading.model, ours, masks).to_json()


def _require_room(model: Model, rows: Sequence[Text]) -> None:
    """Raises NoFigureError where a row, cut anew by the model's own tokenizer, is too long for its positions."""
    longest, room = max(map(len, rows)), learned_positions(model.model)
    if room is not None and longest > room + 1:  # the last token is not read
        raise NoFigureError(f"{model.name} cuts a row into {longest} tokens and has embeddings for {room} positions")


PROTOCOLS: dict[str, Callable[[Reading], Mapping[str, Any]]] = {
    "strided": _strided,
    "disjoint": _disjoint,
    "rolling": _rolling,
    "window-mean": _window_mean,
    "last-tokens": _last_tokens,
    "by-position": _by_position,
    "key-tokens": _key_tokens,
}


def require_protocols(options: EvaluationOptions) -> None:
    """Raises UserError for a protocol that does not exist, with the nearest name, and an evaluator for none."""
    for name in options.protocols:
        if name not in PROTOCOLS:
            known = ", ".join(PROTOCOLS)
            raise UserError(f"--protocols: there is no '{name}'.{did_you_mean(name, PROTOCOLS)} Known: {known}")
    if options.evaluator is not None and not ("key-tokens" in options.protocols and options.perplexity):
        raise UserError("--evaluator finds key tokens: add --perplexity and --protocols key-tokens, or leave it out")


def readings(
    model: Model, evaluator: Model, corpora: Sequence[Corpus], options: EvaluationOptions
) -> Iterator[Measurement]:
    """What is to be measured: each text by each protocol at each length; the loss by position at the longest alone."""
    lengths = sorted(options.lengths)
    for corpus in corpora:
        excerpts = corpus.beginning(model, options.text_tokens)
        for length in lengths:
            reading = Reading(model, evaluator, corpus, excerpts, length, lengths)
            for protocol in options.protocols:
                if protocol != "by-position" or length == lengths[-1]:
                    of = f"{corpus.name}: {protocol}, {length:,} tokens"
                    work = partial(_read, protocol, reading)
                    yield Measurement("perplexity", of, round(reading.tokens * _times(protocol, length)), work)


def _times(protocol: str, length: int) -> float:
    """How often each token is read, about."""
    return {"strided": 2.0, "window-mean": length / LONGLORA_STRIDE, "key-tokens": 7.0}.get(protocol, 1.0)


def _read(protocol: str, reading: Reading) -> Mapping[str, Any]:
    known = {"text": reading.corpus.name, "length": reading.length, "by": protocol, "protocol": protocol}
    try:
        return known | dict(PROTOCOLS[protocol](reading))
    except NoFigureError as error:
        return known | {"reason": str(error)}
