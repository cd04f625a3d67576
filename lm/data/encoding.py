"""Samples as tokens of which only the answers are learned, cut to the length of a row.

The ids of a prompt are a true beginning of the whole: those it has in front of the answer where both agree, else its
own, with the answer's own behind them. So what the model reads when it is asked is what it has learned to read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate, islice, pairwise
from pathlib import Path

import numpy as np

from lm.data.fingerprint import digest
from lm.data.options import SamplesOptions
from lm.data.readers import Unreadable
from lm.data.samples import MalformedError, Sample, Turn
from lm.data.store import TargetedDocument
from lm.data.templates import Template, UnfitTemplateError
from lm.errors import UserError


class SampleEncoder:
    """Encodes the samples of one source, none longer than a row.

    Attributes:
        fingerprint: equal ones encode equally, given equal tokenizers and options.
        cut: samples whose prompts were cut.
        dropped: samples whose answers alone are too long.
    """

    def __init__(self, template: Template, options: SamplesOptions, sequence_length: int, key: str) -> None:
        """key: where the user named the source."""
        self.fingerprint = digest([template.fingerprint, sequence_length])
        self.cut = 0
        self.dropped = 0
        self._template = template
        self._options = options
        self._key = key
        self._longest = sequence_length + 1  # the last token is predicted, but not read

    def __call__(self, samples: Sequence[Sample], on_bad: Callable[[Unreadable], None]) -> list[TargetedDocument]:
        """The documents of those that fit, in order; `on_bad` hears of samples that the template does not write.

        Raises:
            UserError: one that does not fit where that is to be refused; or the template can write none of its form,
                unless bad records are to be skipped.
        """
        written: list[tuple[Sample, list[str]]] = []
        for sample in samples:
            with self._left_out(sample, on_bad):
                written.append((sample, self._template.parts(sample.turns)))
        documents: list[TargetedDocument] = []
        for (sample, _), document in zip(written, self._encode(written), strict=True):
            with self._left_out(sample, on_bad):
                documents += self._fitted(sample, document)
        return documents

    @contextmanager
    def _left_out(self, sample: Sample, on_bad: Callable[[Unreadable], None]) -> Iterator[None]:
        """Leaves out a sample that the template does not write, whole or shortened."""
        try:
            yield
        except MalformedError as error:
            if isinstance(error, UnfitTemplateError) and self._options.bad_records != "skip":
                raise self._refusal(sample, f"{error}, or set {self._key}.bad_records to skip") from None
            on_bad(Unreadable(Path(sample.origin[0]), sample.where, str(error), "malformed"))

    def _refusal(self, sample: Sample, reason: str) -> UserError:
        return UserError(f"{self._key}.path: '{sample.origin[0]}' at {sample.where}: {reason}.")

    def _fitted(self, sample: Sample, document: TargetedDocument) -> list[TargetedDocument]:
        """The document, cut where it must be, or none."""
        if len(document.tokens) <= self._longest:
            return [document]
        least = len(self._shortened(sample, 0).tokens)
        if least > self._longest:
            if self._options.too_long == "refuse":
                raise self._refusal(
                    sample,
                    f"the answers alone take {least} tokens, more than the {self._longest} that fit: raise "
                    "data.sequence_length, or set too_long to drop to leave it out",
                )
            self.dropped += 1
            return []
        document = self._cut(sample, document, least)
        self.cut += 1
        return [document]

    def _cut(self, sample: Sample, document: TargetedDocument, least: int) -> TargetedDocument:
        """The sample with as much of its prompts as fits; `least`: tokens without any."""
        lengths = [len(turn.text) for turn in sample.turns if not turn.is_answer]
        kept = sum(lengths)
        while (length := len(document.tokens)) > self._longest:
            kept = min(kept - 1, kept * (self._longest - least) // (length - least))
            document = self._shortened(sample, fair_share(lengths, kept))
        return document

    def _shortened(self, sample: Sample, most: int) -> TargetedDocument:
        (document,) = self._encode([(sample, self._template.parts(shortened(sample.turns, most)))])
        return document

    def _encode(self, written: Sequence[tuple[Sample, list[str]]]) -> list[TargetedDocument]:
        """The documents of samples, each with its parts as the template writes them."""
        beginnings = [beginning for _, parts in written for beginning in accumulate(parts)]
        ids = iter(self._template.encode_batch(beginnings) if beginnings else [])
        return [
            TargetedDocument(*self._tokens(parts, list(islice(ids, len(parts)))), _answers(sample), sample.origin)
            for sample, parts in written
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


def _answers(sample: Sample) -> bytes:
    return "".join(turn.text for turn in sample.turns if turn.is_answer).encode()


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
