"""Tasks of the offline suite on a model that is being trained, on all its ranks.

Answers are read, not written: behind its prompt stands the gold answer, and it counts where each of its tokens is the
likeliest one after what stands before it. For the first answer that is what writing by the likeliest tokens would give
right behind the prompt; a later one of several is seen behind the gold ones before it. So a sample costs one forward,
and all ranks make equally many, as ZeRO-3 needs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile, zip_longest

import torch
from torch import Tensor

from eval.options import LiveOptions
from eval.selection import Questions, QuestionWriter, Skipped, chosen_tasks
from eval.tasks import Sample, Task, open_haystack
from lm.data.rows import IGNORED
from lm.data.tokenizers import Tokenizer
from lm.errors import UserError
from lm.train.evaluate import Evaluated
from lm.train.progress import Progress

EVERY_ANSWER = "string_match_all"
"""The metric of tasks that want all of their answers; others are content with one."""


@dataclass(frozen=True)
class Forced:
    """A sample as tokens: bos, prompt and gold answers.

    cell: which task and length it belongs to. ids: [n] int64. spans: where in it each answer's tokens stand.
    """

    cell: int
    ids: Tensor
    spans: Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Pack:
    """Samples as one stream of documents, in the form that a training forward reads."""

    samples: Sequence[Forced]
    tokens: Tensor
    targets: Tensor
    lengths: Sequence[int]


class LiveEvaluation:
    """The run file's `evaluations`; see `lm.train.hook.Hook`."""

    title = "asking the model"

    def __init__(self, options: LiveOptions, batch_tokens: int) -> None:
        """batch_tokens: tokens of one forward, where a sample is not longer.

        Raises UserError for tasks and texts that do not exist.
        """
        self.every = options.every
        self._options = options
        self._batch_tokens = batch_tokens
        self._tasks = chosen_tasks(options)
        self._haystack = open_haystack(options)
        self._names: list[str] = []
        self._packs: list[Pack] = []

    def prepare(self, tokenizer: Tokenizer, progress: Progress) -> None:
        """Writes the questions, the same on every rank. Raises UserError where none of them fits its length."""
        places = [(task, length) for length in sorted(self._options.lengths) for task in self._tasks]
        writer = QuestionWriter(tokenizer, tokenizer.fingerprint, self._options, self._haystack)
        asked: list[Questions] = []
        with progress.phase("writing the questions", total=len(places)) as phase:
            for task, length in places:
                written = writer.write(task, length)
                if isinstance(written, Skipped):
                    progress.say(f"evaluations: left out: {written.reason}")
                else:
                    asked.append(written)
                phase.advance()
        if not asked:
            raise UserError("evaluations.lengths: no task can be asked at these lengths, for the reasons above")
        self._names = [f"eval/{one.task.name}@{one.length}" for one in asked]
        self._packs = list(packed(interleaved(asked, tokenizer), self._batch_tokens))

    def __call__(self, engine: Evaluated) -> dict[str, float]:
        """Scores and nats per token of the gold answers, by task and length, and how many samples were asked.

        Collective. Ends after `seconds` with what was asked by then; every task and length is asked as often as the
        others, give or take one.
        """
        world, start = engine.world, time.monotonic()
        # Of each cell: scores, samples, nats, tokens of the answers.
        sums = torch.zeros(len(self._names), 4, dtype=torch.float64)
        engine.eval()
        with torch.no_grad():
            for first in range(0, len(self._packs), world.readers):
                mine = first + world.reader
                # A rank without a pack of its own reads the first one without counting: under ZeRO-3 all must read.
                pack = self._packs[mine if mine < len(self._packs) else 0]
                found = engine.forward(pack)
                if mine < len(self._packs):
                    _count(pack, found.correct.cpu(), found.token_nll.double().cpu(), sums)
                late = time.monotonic() - start > self._options.seconds
                if world.sum(torch.tensor(float(late))) > 0:
                    break
        return self._record(world.sum_once(sums).cpu())

    def _record(self, sums: Tensor) -> dict[str, float]:
        record: dict[str, float] = {"eval/samples": float(sums[:, 1].sum())}
        for name, (score, samples, nats, tokens) in zip(self._names, sums.tolist(), strict=True):
            if samples:
                record |= {name: score / samples, f"{name}/nll": nats / tokens}
        return record


def forced(sample: Sample, task: Task, tokenizer: Tokenizer, cell: int) -> Forced:
    """The sample with its gold answers behind it, joined as its prompt ends."""
    answers = sample.answers if task.metric == EVERY_ANSWER else sample.answers[:1]
    open_end = sample.prompt[-1:].isspace()
    glue, between = ("", " ") if open_end else (" ", ", ")
    texts = [sample.prompt + glue + between.join(answers[:count]) for count in range(1, len(answers) + 1)]
    ids = tokenizer.encode(texts[-1])
    # Tokens may reach over a border; they belong to the answer that ends in them.
    borders = [common(tokenizer.encode(text), ids) for text in (sample.prompt, *texts)]
    spans = [(1 + begin, 1 + end) for begin, end in pairwise(borders)]
    return Forced(cell, torch.tensor([tokenizer.bos_id, *ids]), spans)


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def interleaved(asked: Sequence[Questions], tokenizer: Tokenizer) -> Iterator[Forced]:
    """The first sample of each cell, then the second of each, and so on."""
    for row in zip_longest(*(one.samples for one in asked)):
        for cell, sample in enumerate(row):
            if sample is not None:
                yield forced(sample, asked[cell].task, tokenizer, cell)


def packed(samples: Iterator[Forced], tokens: int) -> Iterator[Pack]:
    """The samples in streams of at most `tokens` tokens, or of one sample."""
    some: list[Forced] = []
    for sample in samples:
        if some and sum(len(other.ids) for other in some) + len(sample.ids) > tokens:
            yield _pack(some)
            some = []
        some.append(sample)
    if some:
        yield _pack(some)


def _pack(samples: Sequence[Forced]) -> Pack:
    targets = []
    for sample in samples:
        wanted = torch.full((len(sample.ids),), IGNORED)
        for begin, end in sample.spans:
            wanted[begin:end] = sample.ids[begin:end]
        targets.append(wanted[1:])  # of the token before each
    tokens = torch.cat([sample.ids[:-1] for sample in samples])
    return Pack(tuple(samples), tokens, torch.cat(targets), [len(sample.ids) - 1 for sample in samples])


def _count(pack: Pack, correct: Tensor, nll: Tensor, sums: Tensor) -> None:
    """Adds a pack's scores, samples, nats and tokens to the sums of their cells."""
    start = -1  # a token is predicted one place before its own
    for sample in pack.samples:
        right = [begin < end and bool(correct[start + begin : start + end].all()) for begin, end in sample.spans]
        nats = sum(float(nll[start + begin : start + end].sum()) for begin, end in sample.spans)
        tokens = sum(end - begin for begin, end in sample.spans)
        sums[sample.cell] += torch.tensor([sum(right) / len(right), 1.0, nats, tokens], dtype=torch.float64)
        start += len(sample.ids) - 1
