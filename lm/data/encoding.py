"""Samples as tokens of which only the answers are learned, cut to the length of a row.

The ids of a prompt are a true beginning of the whole: those it has in front of the answer where both agree, else its
own, with the answer's own behind them. So what the model reads when it is asked is what it has learned to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain, islice, pairwise

import numpy as np

from lm.data.fingerprint import digest
from lm.data.options import SamplesOptions
from lm.data.samples import Sample, Turn
from lm.data.store import TargetedDocument
from lm.data.templates import Template
from lm.errors import UserError


class SampleEncoder:
    """Encodes the samples of one source, none longer than a row.

    Attributes:
        fingerprint: equal ones encode equally, given equal tokenizers and options.
        cut: samples whose prompts were cut.
        dropped: samples whose answers alone are too long.
    """

    def __init__(self, template: Template, options: SamplesOptions, sequence_length: int) -> None:
        self.fingerprint = digest([template.fingerprint, sequence_length])
        self.cut = 0
        self.dropped = 0
        self._template = template
        self._refuse = options.too_long == "refuse"
        self._longest = sequence_length + 1  # the last token is predicted, but not read

    def __call__(self, samples: Sequence[Sample]) -> list[TargetedDocument]:
        """The documents of those that fit, in order.

        Raises:
            UserError: one that cannot be written by the template, or does not fit where that is to be refused.
        """
        encoded = self._encode([(sample, sample.turns) for sample in samples]) if samples else []
        fitting = (self._fitted(sample, document) for sample, document in zip(samples, encoded, strict=True))
        return [document for document in fitting if document is not None]

    def _fitted(self, sample: Sample, document: TargetedDocument) -> TargetedDocument | None:
        if len(document.tokens) <= self._longest:
            return document
        (least,) = self._encode([(sample, shortened(sample.turns, 0))])
        if len(least.tokens) > self._longest:
            if self._refuse:
                raise UserError(
                    f"{sample.place}: the answers alone take {len(least.tokens)} tokens, more than the "
                    f"{self._longest} that fit: raise data.sequence_length, or set too_long to drop to leave it out."
                )
            self.dropped += 1
            return None
        self.cut += 1
        return self._cut(sample, document, len(least.tokens))

    def _cut(self, sample: Sample, document: TargetedDocument, least: int) -> TargetedDocument:
        """The sample with as much of its prompts as fits; `least`: tokens without any."""
        lengths = [len(turn.text) for turn in sample.turns if not turn.is_answer]
        kept = sum(lengths)
        while (length := len(document.tokens)) > self._longest:
            kept = min(kept - 1, kept * (self._longest - least) // (length - least))
            (document,) = self._encode([(sample, shortened(sample.turns, fair_share(lengths, kept)))])
        return document

    def _encode(self, conversations: Sequence[tuple[Sample, Sequence[Turn]]]) -> list[TargetedDocument]:
        written = [self._template.parts(sample, turns) for sample, turns in conversations]
        beginnings = [list(accumulate(parts)) for parts in written]
        ids = iter(self._template.encode_batch(list(chain.from_iterable(beginnings))))
        answers = ["".join(turn.text for turn in turns if turn.is_answer).encode() for _, turns in conversations]
        return [
            TargetedDocument(*self._tokens(parts, list(islice(ids, len(parts)))), utf8)
            for parts, utf8 in zip(written, answers, strict=True)
        ]

    def _tokens(self, parts: Sequence[str], beginnings: Sequence[list[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Tokens, and which are learned, of parts to read and to learn by turns.

        beginnings: ids of the text up to the end of each part.
        """
        whole = beginnings[-1]
        if all(whole[: len(ids)] == ids for ids in beginnings):
            ends = [0, *map(len, beginnings)]
            pieces = [whole[start:stop] for start, stop in pairwise(ends)]
        else:
            pieces = [beginnings[0], *self._template.encode_batch(parts[1:])]
        tokens, targets = [*self._template.begin], [False] * len(self._template.begin)
        for number, piece in enumerate(pieces):
            learned = number % 2 == 1
            ids = [*piece, *self._template.end] if learned else piece
            tokens += ids
            targets += [learned] * len(ids)
        return np.array(tokens, dtype=np.uint32), np.array(targets)


def shortened(turns: Sequence[Turn], most: int) -> list[Turn]:
    """The turns, of prompts no more than `most` characters each: the middle is left out, both ends stay."""
    return [
        turn
        if turn.is_answer or len(turn.text) <= most
        else replace(turn, text=turn.text[: most - most // 2] + turn.text[len(turn.text) - most // 2 :])
        for turn in turns
    ]


def fair_share(lengths: Sequence[int], total: int) -> int:
    """The largest n for which the sum of min(length, n) is at most `total`: long ones give way first."""
    ordered = sorted(lengths)
    for place, length in enumerate(ordered):
        share = total // (len(ordered) - place)
        if length > share:
            return share
        total -= length
    return ordered[-1]
