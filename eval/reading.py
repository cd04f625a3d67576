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
from eval.perplexity import LONGLORA_STRIDE, last_tokens, loss_by_position, rolling, strided, window_mean
from eval.tasks import open_haystack
from eval.tasks.haystack import local_texts
from eval.text import Text, joined, read_text
from lm.data.fingerprint import content_digest
from lm.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Corpus:
    """The documents behind one name."""

    name: str
    documents: Sequence[str]

    @cached_property
    def digest(self) -> str:
        return content_digest(document.encode() for document in self.documents)

    def texts(self, model: Model, tokens: int) -> list[Text]:
        """The first so many tokens of the documents, the last of them cut; documents of one token are left out."""
        found: list[Text] = []
        for document in self.documents:
            if tokens < 2:
                break
            text = read_text(model.tokenizer, document)
            if len(text) > 1:
                found.append(text.part(0, min(len(text), tokens)))
                tokens -= len(found[-1])
        return found

    def rows(self, model: Model, length: int, tokens: int) -> list[str]:
        """The first so many tokens of the documents in strings of `length` tokens each; what is left over is left out.

        Cut and encoded alone a string may have a token more or less than it had in its document.
        """
        rows: list[str] = []
        for document in self.documents:
            text, content = read_text(model.tokenizer, document), document.encode()
            ends = np.cumsum(text.bytes)[length - 1 :: length].tolist()
            rows += [content[begin:end].decode(errors="ignore") for begin, end in pairwise([0, *ends])]
        return rows[: max(1, tokens // length)]


def open_corpus(path: Path) -> Corpus:
    """The documents of a file, folder or glob (kinds as in `data.sources`), or those that come with Python.

    Raises UserError where nothing that can be read is there.
    """
    if path == PYTHON_DOCUMENTATION:
        haystack = open_haystack()
        return Corpus(haystack.name, [haystack.text])
    return Corpus(str(path), local_texts(path, "--perplexity"))


@dataclass(frozen=True)
class Reading:
    """A corpus to be read at a length, one of several.

    texts: its first `tokens` tokens. evaluator: the model that says which tokens are key.
    """

    model: Model
    evaluator: Model
    corpus: Corpus
    texts: Sequence[Text]
    length: int
    lengths: Sequence[int]

    @property
    def prefix(self) -> int:
        """What stands before a text: bos, or eos where there is none."""
        tokenizer = self.model.tokenizer
        found = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if found is None:
            raise UserError(f"{self.model.name}: its tokenizer has neither bos nor eos to stand before a text")
        return int(found)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.texts))

    def pieces(self, length: int) -> list[Text]:
        """All that `length` tokens long can be cut from single documents without overlap."""
        return [text.part(at, at + length) for text in self.texts for at in range(0, len(text) - length + 1, length)]


def _strided(reading: Reading) -> Mapping[str, Any]:
    stride = max(1, reading.length // 2)
    return strided(reading.model, reading.texts, reading.length, stride, reading.prefix).to_json()


def _disjoint(reading: Reading) -> Mapping[str, Any]:
    return strided(reading.model, reading.texts, reading.length, reading.length, reading.prefix).to_json()


def _rolling(reading: Reading) -> Mapping[str, Any]:
    return rolling(reading.model, reading.texts, reading.length, reading.prefix).to_json()


def _window_mean(reading: Reading) -> Mapping[str, Any]:
    try:
        return window_mean(reading.model, joined(reading.texts, reading.prefix), reading.length).to_json()
    except ValueError as error:
        return {"reason": str(error)}


def _last_tokens(reading: Reading) -> Mapping[str, Any]:
    longest, last = max(reading.lengths), max(1, min(reading.lengths) // 2)
    pieces = reading.pieces(longest)
    if not pieces:
        return {"reason": f"no document has the {longest} tokens of the longest context"}
    return last_tokens(reading.model, pieces, [reading.length], last)[0].to_json()


def _by_position(reading: Reading) -> Mapping[str, Any]:
    rows = reading.pieces(reading.length)
    if not rows:
        return {"reason": f"no document has {reading.length} tokens"}
    return {"by_position": [asdict(part) for part in loss_by_position(reading.model, rows)], "rows": len(rows)}


def _key_tokens(reading: Reading) -> Mapping[str, Any]:
    rows = reading.corpus.rows(reading.model, reading.length, reading.tokens)
    if not rows:
        return {"reason": f"no document has {reading.length} tokens"}
    theirs, ours = ([read_text(one.tokenizer, row) for row in rows] for one in (reading.evaluator, reading.model))
    short = max(2, reading.length // 4)
    masks = key_tokens(reading.evaluator, theirs, short, max(1, short // 4))
    try:
        return long_perplexity(reading.model, ours, transferred(masks, theirs, ours)).to_json()
    except ValueError:
        return {"reason": f"no token is key by {reading.evaluator.name}: none gains enough from more context"}


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
        texts = corpus.texts(model, options.text_tokens)
        for length in lengths:
            reading = Reading(model, evaluator, corpus, texts, length, lengths)
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
    return known | dict(PROTOCOLS[protocol](reading))
