"""Recall probes: how much of what the model read long ago it can say again, at the training length and beyond.

A probe is text of the run with a needle in it: tokens in no order, which come once more at the very end. Behind the
needle's first tokens, the cue, the model knows the others only from where they stood before. No task, template or
tokenizer is involved, so that a model shows this ability as soon as it has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.random import PCG64, Generator
from torch import Tensor

from lm.data.prepare import Prepared
from lm.data.recall import ENDLESS
from lm.data.rows import IGNORED
from lm.train.evaluate import Evaluated
from lm.train.observe.options import ObserveOptions
from lm.train.periodic import at_interval

NEEDLE, CUE = 24, 8


@dataclass(frozen=True)
class Probe:
    """One document, in the form that a training forward reads: tokens [n], targets [n], lengths [n]."""

    tokens: Tensor
    targets: Tensor
    lengths: Sequence[int]


def probe(text: np.ndarray, depth: float, seed: int) -> Probe:
    """Text [n] of at least 2 `NEEDLE` tokens with the needle at a share `depth` of the way, and again at the end.

    The needle's tokens are drawn from those of the text, each once where there are enough. Targets are what comes
    behind the cue.
    """
    random = Generator(PCG64(seed))
    kinds = np.unique(text)
    needle = random.choice(kinds, NEEDLE, replace=len(kinds) < NEEDLE)
    tokens = text.copy()
    place = round(depth * (len(text) - 2 * NEEDLE))
    tokens[place : place + NEEDLE] = needle
    tokens[-NEEDLE:] = needle
    targets = np.full_like(tokens, IGNORED)
    targets[-NEEDLE + CUE - 1 : -1] = needle[CUE:]
    return Probe(torch.from_numpy(tokens), torch.from_numpy(targets), [len(tokens)])


class RecallProbes:
    """Probes of several lengths, asked of the live model on all its ranks: see `lm.train.periodic`."""

    def __init__(self, options: ObserveOptions, steps: int, prepared: Prepared, engine: Evaluated) -> None:
        """`steps`: of the whole run. Lengths that cannot hold a needle twice are left out."""
        self._options = options
        self._steps = steps
        self._prepared = prepared
        self._engine = engine
        # Rows that are made by a rule are no text, and mostly ask for recall themselves.
        self._every = options.recall_every if prepared.statistics is not None else None

    def due(self, step: int) -> bool:
        return self._every is not None and at_interval(step, self._every, self._steps)

    def __call__(self, step: int) -> dict[str, float]:
        """`recall/N`, the share of tokens that are the likeliest where they should be said again in a text of N tokens,
        and `recall/N/nll`, their mean loss in nats. Collective; weights and random numbers stay as they are.
        """
        world, probes = self._engine.world, self._probes
        names = sorted({tokens for tokens, _ in probes})
        sums = torch.zeros(len(names), 3, dtype=torch.float64)
        self._engine.eval()
        with torch.no_grad():
            for begin in range(0, len(probes), world.readers):
                place = begin + world.reader
                # A rank without a probe of its own reads the first one uncounted: under ZeRO-3 all must read.
                tokens, asked = probes[place if place < len(probes) else 0]
                found = self._engine.forward(asked)
                if place < len(probes):
                    counted = asked.targets != IGNORED
                    right, nll = (x.cpu().double()[counted].sum() for x in (found.correct, found.token_nll))
                    sums[names.index(tokens)] += torch.stack((right, nll, counted.sum().double()))
        record: dict[str, float] = {}
        for tokens, (right, nll, count) in zip(names, world.sum_once(sums).tolist(), strict=True):
            record |= {f"recall/{tokens}": right / count, f"recall/{tokens}/nll": nll / count}
        return record

    @cached_property
    def _probes(self) -> list[tuple[int, Probe]]:
        """Each with its length, made of held-out text where there is some."""
        held_out, options = self._prepared.validation, self._options
        rows, count = (self._prepared.train, ENDLESS) if held_out is None else (held_out.batches, held_out.num_rows)
        found: list[tuple[int, Probe]] = []
        first = 0
        for length in sorted(set(options.recall_lengths)):
            tokens = length * rows.sequence_length
            for number in range(options.recall_samples if tokens >= 4 * NEEDLE else 0):
                text = rows.rows((first + row) % count for row in range(length)).tokens.flatten().numpy()
                first += length
                found.append((tokens, probe(text, (number + 0.5) / options.recall_samples, seed=first)))
        return found
