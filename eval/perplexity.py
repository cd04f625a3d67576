"""Perplexity by several protocols, each under its own name: they answer different questions and are not comparable.

strided        every token once, with at least window - stride tokens of context (Hugging Face's guide to perplexity)
disjoint       the same with a stride as long as the window
rolling        every token once, in blocks, the last of which reaches back (lm-evaluation-harness)
window-mean    means of overlapping windows, each scored from its first token (LongLoRA, arXiv 2309.12307)
last-tokens    the same last tokens of a text behind contexts of growing length
by-position    the loss at each place of a window

All take token losses from anything with `token_nll`, in nats, and write perplexity as e to their mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from eval.text import Text
from lm.train.evaluation import position_bins

LONGLORA_STRIDE = 256
BLOCK = 512
"""Tokens after which losses of one text hardly depend on each other any more."""

Array = NDArray[np.float64]


class NoFigureError(ValueError):
    """A protocol has no figure for this text at this length, for the reason that it says: too little text, say."""


class Scored(Protocol):
    """What a protocol asks of a model."""

    def token_nll(self, rows: Sequence[Sequence[int]]) -> list[Array]:
        """For each row of n tokens -log p(row[t+1] | row[..t]) in nats, [n-1]."""


@dataclass(frozen=True)
class Perplexity:
    """What a protocol found.

    nll: mean nats per token. stderr: its standard error over `units` (`unit` says of what), None where there is one
    unit. tokens, bytes, words: what was predicted, each counted once, whatever the protocol does.
    """

    protocol: str
    nll: float
    stderr: float | None
    unit: str
    units: int
    tokens: int
    bytes: int
    words: int

    @property
    def perplexity(self) -> float:
        """Per token."""
        return _exp(self.nll)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers."""
        return self._per(self.bytes) / math.log(2)

    @property
    def byte_perplexity(self) -> float:
        return _exp(self._per(self.bytes))

    @property
    def word_perplexity(self) -> float:
        """Per word of the text; words are runs of anything but white space."""
        return _exp(self._per(self.words))

    def _per(self, units: int) -> float:
        return self.nll * self.tokens / units if units else math.nan

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the derived figures for other programs."""
        names = ("perplexity", "bits_per_byte", "byte_perplexity", "word_perplexity")
        return asdict(self) | {name: getattr(self, name) for name in names}


def _exp(nats: float) -> float:
    return math.exp(nats) if not nats > 700 else math.inf


@dataclass(frozen=True)
class Window:
    """Tokens [begin, end) of a text as one row; those from `first` on are scored there."""

    begin: int
    end: int
    first: int


def strided_windows(tokens: int, window: int, stride: int) -> Iterator[Window]:
    """Rows that begin every `stride` tokens and read `window`; each scores what none before it has.

    Tokens 1 .. tokens-1 are scored once each. A row has one token more than it reads, so that with stride = window
    (disjoint blocks) none is lost; the guide's code loses one at each border.
    """
    if not 1 <= stride <= window:
        raise ValueError(f"stride must be from 1 to the window {window}, not {stride}: tokens would be left out")
    scored = 1
    for begin in range(0, tokens - 1, stride):
        end = min(begin + window + 1, tokens)
        yield Window(begin, end, scored)
        if end == tokens:
            return
        scored = end


def rolling_windows(tokens: int, window: int) -> Iterator[Window]:
    """Blocks of `window` targets, each behind the token before it; the last block reads a whole window, too."""
    for scored in range(1, tokens, window):
        end = min(scored + window, tokens)
        yield Window(max(0, end - window - 1), end, scored)


def token_losses(model: Scored, texts: Sequence[Text], windows: Callable[[int], Iterator[Window]]) -> list[Array]:
    """For each text the losses [n-1] of its tokens but the first, each as its window found it."""
    places = [(number, window) for number, text in enumerate(texts) for window in windows(len(text))]
    found = model.token_nll([texts[number].ids[window.begin : window.end].tolist() for number, window in places])
    losses = [np.full(max(0, len(text) - 1), np.nan) for text in texts]
    for (number, window), nll in zip(places, found, strict=True):
        losses[number][window.first - 1 : window.end - 1] = nll[window.first - 1 - window.begin :]
    return losses


def strided(model: Scored, texts: Sequence[Text], window: int, stride: int, prefix: int | None = None) -> Perplexity:
    """Every token once. prefix: a token (bos) to stand before each text that does not begin with it."""
    texts = [text.behind(prefix) for text in texts]
    losses = token_losses(model, texts, lambda tokens: strided_windows(tokens, window, stride))
    return over_texts(f"strided, window {window}, stride {stride}", texts, losses)


def rolling(model: Scored, texts: Sequence[Text], window: int, prefix: int) -> Perplexity:
    """Every token once, as lm-evaluation-harness's loglikelihood_rolling. prefix: bos, or eos where there is none."""
    texts = [text.behind(prefix) for text in texts]
    losses = token_losses(model, texts, lambda tokens: rolling_windows(tokens, window))
    return over_texts(f"rolling, window {window}", texts, losses)


def window_mean(
    model: Scored, stream: Text, window: int, stride: int = LONGLORA_STRIDE, most: int | None = None
) -> Perplexity:
    """LongLoRA's figure: the mean over windows that begin every `stride` tokens of the mean over each window's targets.

    stream: its texts joined. most: at most so many of the windows, evenly spaced. As in its code the last window is
    left out, no token stands before a window, and the first tokens of a window, which have little context, count like
    the others; e is not rounded. Overlapping windows vary together, so the standard error is over blocks of as many
    windows as overlap.
    Raises NoFigureError for a window of one token, which predicts none, and for a stream of less than
    window + stride + 1 tokens, which has no window but the last.
    """
    if window < 2:
        raise NoFigureError(f"a window of {window} token predicts none")
    begins = range(0, len(stream) - window, stride)[:-1]
    if not begins:
        raise NoFigureError(f"{len(stream)} tokens are too few for a window of {window}: {window + stride + 1} or more")
    count = min(most or len(begins), len(begins))
    chosen = [begins[index * len(begins) // count] for index in range(count)]
    means = np.array([nll.mean() for nll in model.token_nll([stream.ids[b : b + window].tolist() for b in chosen])])
    spacing = chosen[1] - chosen[0] if count > 1 else window
    overlapping = -(-window // spacing)
    blocks = [means[at : at + overlapping].mean() for at in range(0, count, overlapping)]
    ends = [min(begin + window, after + 1) for begin, after in zip(chosen, [*chosen[1:], len(stream)], strict=True)]
    used = [stream.part(begin + 1, end) for begin, end in zip(chosen, ends, strict=True)]
    return Perplexity(
        protocol=f"window-mean, window {window}, stride {stride}, {count} of {len(begins)} windows",
        nll=float(means.mean()),
        stderr=float(np.std(blocks, ddof=1) / math.sqrt(len(blocks))) if len(blocks) > 1 else None,
        unit="windows" if overlapping == 1 else f"blocks of {overlapping} windows",
        units=len(blocks),
        tokens=sum(len(part) for part in used),
        bytes=sum(int(part.bytes.sum()) for part in used),
        words=sum(int(part.words.sum()) for part in used),
    )


def last_tokens(model: Scored, texts: Sequence[Text], lengths: Sequence[int], last: int) -> list[Perplexity]:
    """For each length the loss of the `last` tokens of every text, behind length - last tokens of context.

    The targets are the same at every length, so a difference is what the context gains or costs. A length counts
    context and targets. Raises NoFigureError where a length leaves no context, ValueError where a text is
    shorter than the longest.
    """
    if min(lengths) <= last:
        raise NoFigureError(f"a length of {min(lengths)} leaves no context for the last {last} tokens")
    if any(len(text) < max(lengths) for text in texts):
        raise ValueError(f"every text must have {max(lengths)} tokens for a context of that length")
    results = []
    for length in lengths:
        cut = [text.part(len(text) - length, len(text)) for text in texts]
        nll = model.token_nll([text.ids.tolist() for text in cut])
        targets = [text.part(length - last - 1, length) for text in cut]
        name = f"last-tokens, {last} of {length}"
        results.append(over_texts(name, targets, [losses[-last:] for losses in nll], "texts"))
    return results


@dataclass(frozen=True)
class ContextLoss:
    """Mean loss of the targets that have from `first` to `end` - 1 tokens before them in their row: nats per token.

    stderr: over rows; None where there is one.
    """

    first: int
    end: int
    loss: float
    stderr: float | None


def loss_by_context(model: Scored, texts: Sequence[Text]) -> list[ContextLoss]:
    """The loss at each place, in bins that grow geometrically; every text is one row, all of one length.

    Raises ValueError for texts of different lengths: the far places would be those of other texts than the near ones;
    NoFigureError for rows of one token.
    """
    if len({len(text) for text in texts}) != 1:
        raise ValueError("loss by position needs rows of one length")
    if len(texts[0]) < 2:
        raise NoFigureError("rows of one token have nothing to predict")
    nll = np.stack(model.token_nll([text.ids.tolist() for text in texts]))
    parts = []
    for first, end in position_bins(nll.shape[1]):
        means = nll[:, first:end].mean(1)
        stderr = float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
        parts.append(ContextLoss(first + 1, end + 1, float(means.mean()), stderr))
    return parts


def over_texts(
    protocol: str,
    texts: Sequence[Text],
    losses: Sequence[Array],
    unit: str = "documents",
    counted: Sequence[NDArray[np.bool_]] | None = None,
) -> Perplexity:
    """The mean of all losses; losses[i]: [n-1], of the tokens of texts[i] but the first; counted: which of them are.

    The standard error is that of a ratio of sums over texts, which differ in length, or over blocks of BLOCK tokens of
    the only one. Raises NoFigureError for no token.
    """
    masks = [np.ones(len(nll), np.bool_) for nll in losses] if counted is None else counted
    parts = [(nll, mask) for nll, mask in zip(losses, masks, strict=True) if mask.any()]
    if not parts:
        raise NoFigureError(f"{protocol}: there is no token to predict")
    if len(parts) == 1 and len(parts[0][0]) >= 2 * BLOCK:
        unit = f"blocks of {BLOCK} tokens"
        borders = range(BLOCK, len(parts[0][0]), BLOCK)
        blocks = zip(*(np.split(column, borders) for column in parts[0]), strict=True)
        parts = [(nll, mask) for nll, mask in blocks if mask.any()]
    sums = np.array([nll[mask].sum() for nll, mask in parts])
    sizes = np.array([mask.sum() for _, mask in parts])
    total, units = int(sizes.sum()), len(sizes)
    mean = sums.sum() / total
    spread = ((sums - mean * sizes) ** 2).sum()
    return Perplexity(
        protocol=protocol,
        nll=float(mean),
        stderr=math.sqrt(units / (units - 1) * spread) / total if units > 1 else None,
        unit=unit,
        units=units,
        tokens=total,
        bytes=int(sum(text.bytes[1:][mask].sum() for text, mask in zip(texts, masks, strict=True))),
        words=int(sum(text.words[1:][mask].sum() for text, mask in zip(texts, masks, strict=True))),
    )
