"""One figure of a model at one context length: held-out perplexity by two protocols, or retrieval of a passkey."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from eval.model import Model
from eval.perplexity import LONGLORA_STRIDE, Perplexity, last_tokens, window_mean
from eval.tasks import CannotBuildError, Haystack
from eval.tasks.passkey import Passkey
from eval.tasks.words import FILLER
from eval.text import Text, joined, pieces, read_text
from lm.data.fingerprint import content_digest
from lm.data.prepare import Prepared
from lm.extend.measure_options import MeasureOptions
from lm.train.before_after import Figure, Kind

Key = tuple[Kind, int, float | None]
UNUSED = Haystack("filler", FILLER)
"""Passkey brings its own filler."""
SEED = 0


@dataclass(frozen=True, eq=False)
class Bench:
    """What every model is measured on, so that figures differ by the model alone.

    context: of the base, in tokens. tokenizer: the run's, as transformers has it; base and result share it.
    """

    options: MeasureOptions
    context: int
    target_length: int
    prepared: Prepared
    tokenizer: PreTrainedTokenizerBase

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """All lengths that are asked for."""
        return self.options.resolved_lengths(self.context, self.target_length)

    @cached_property
    def last_k(self) -> int:
        """Targets of the last-tokens protocol."""
        return self.options.resolved_last_k(min(self.lengths))

    @property
    def settings(self) -> dict[str, Any]:
        """What all figures share; figures under others are not comparable with them."""
        passkey = self.options.passkey
        return {
            "context": self.context,
            "target_length": self.target_length,
            "last_k": self.last_k,
            "windows": self.options.windows,
            "trials": passkey.trials if passkey is not None else 0,
            "longest": self._longest,
            "text": content_digest([self._stream.ids.tobytes()]),
        }

    @cached_property
    def wanted(self) -> list[Key]:
        """Every measurement that can be made, the short ones of each kind first."""
        keys: list[Key] = [("last_tokens", length, None) for length in self.lengths if length <= self._longest]
        keys += [
            ("window_mean", length, None) for length in self.lengths if length + LONGLORA_STRIDE < len(self._stream)
        ]
        return keys + [("passkey", length, depth) for length, depth in self._passkeys()]

    def left_out(self) -> Iterator[str]:
        """What was asked for and cannot be measured, in a user's words."""
        tokens = len(self._stream)
        for kind, least in (("last tokens", 0), ("window mean", LONGLORA_STRIDE + 1)):
            if missing := [length for length in self.lengths if length + least > tokens]:
                said = ", ".join(f"{length:,}" for length in missing)
                yield f"{kind} at {said}: the held-out text has only {tokens:,} tokens"
        if self.options.passkey is not None:
            fitting = {length for length, _ in self._passkeys()}
            if missing := [length for length in self._passkey_lengths if length not in fitting]:
                yield f"passkey at {', '.join(map(str, missing))}: its question alone is longer"

    def tokens(self, key: Key) -> int:
        """Tokens that a measurement reads, about."""
        kind, length, _ = key
        passkey = self.options.passkey
        return length * (passkey.trials if kind == "passkey" and passkey is not None else self.options.windows)

    def measure(self, model: Model, key: Key) -> Figure:
        """One figure."""
        kind, length, depth = key
        if kind == "passkey":
            return self._passkey(model, length, depth)
        if kind == "window_mean":
            found = window_mean(model, self._stream, length, LONGLORA_STRIDE, self.options.windows)
        else:
            (found,) = last_tokens(model, self._pieces, [length], self.last_k)
        return _figure(key, found)

    def _passkey(self, model: Model, length: int, depth: float | None) -> Figure:
        assert self.options.passkey is not None
        task = Passkey(depth=depth)
        # One token less, since a model may have a bos before the prompt.
        samples = task.samples(model, length - 1, self.options.passkey.trials, SEED, UNUSED)
        prompts = [model.encode_prompt(sample.prompt) for sample in samples]
        written = model.generate(prompts, samples[0].max_new_tokens)
        scores = [task.score(model.decode(ids), sample) for ids, sample in zip(written, samples, strict=True)]
        share = sum(scores) / len(scores)
        stderr = math.sqrt(share * (1 - share) / len(scores)) if len(scores) > 1 else None
        return Figure("passkey", length, share, stderr, len(scores), depth)

    def _passkeys(self) -> list[tuple[int, float]]:
        if self.options.passkey is None:
            return []
        fitting = [length for length in self._passkey_lengths if self._fits(length)]
        return [(length, depth) for length in fitting for depth in self.options.passkey.depths]

    @property
    def _passkey_lengths(self) -> tuple[int, ...]:
        assert self.options.passkey is not None
        return self.options.passkey.lengths or self.lengths

    def _fits(self, length: int) -> bool:
        try:
            Passkey(depth=0.0).samples(self.prepared.tokenizer, length - 1, 1, SEED, UNUSED)
        except CannotBuildError:
            return False
        return True

    @cached_property
    def _texts(self) -> list[Text]:
        bos = self.prepared.tokenizer.bos_id
        return [read_text(self.tokenizer, text).behind(bos) for text in _documents(self.prepared)]

    @cached_property
    def _stream(self) -> Text:
        return joined(self._texts, None)

    @property
    def _longest(self) -> int:
        """The longest length that the held-out text reaches; 0 where it reaches none."""
        return max((length for length in self.lengths if length <= len(self._stream)), default=0)

    @cached_property
    def _pieces(self) -> list[Text]:
        # Of the longest length for all, so that the last tokens are the same at each.
        return pieces(self._texts, None, self._longest, self.options.windows)


def _figure(key: Key, found: Perplexity) -> Figure:
    return Figure(key[0], key[1], found.nll, found.stderr, found.units)


def _documents(prepared: Prepared) -> Iterator[str]:
    """The held-out texts, whole: where only answers are learned, with what they answer."""
    for store in prepared.validation.stores if prepared.validation is not None else ():
        at = 0
        for number, size in enumerate(store.document_bytes.tolist()):
            if len(store.targets):
                first, end = store.offsets[number : number + 2]
                yield prepared.tokenizer.decode(store.tokens[first:end].tolist())
            else:
                yield store.text[at : at + size].tobytes().decode()
            at += size
