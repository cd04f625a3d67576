"""A sample of what a model writes, by recomputing the whole stream for every token: short, simple, cache-free."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lm.data.tokenizers import Tokenizer
from lm.model.documents import Documents


@dataclass(frozen=True)
class SamplingSettings:
    """How tokens are drawn and when drawing stops."""

    max_new_tokens: int = 200
    temperature: float = 0.8
    """Logits are divided by it; 0 takes the likeliest token."""
    top_p: float = 0.95
    """Only the smallest set of tokens with at least this probability is drawn from."""
    seed: int = 0
    max_seconds: float = 20.0
    """Stops drawing after this time."""


@dataclass(frozen=True)
class Sample:
    """A prompt and what the model wrote after it."""

    prompt: str
    text: str
    settings: SamplingSettings


def draw(logits: Tensor, settings: SamplingSettings, generator: torch.Generator) -> int:
    """One token id from logits [V], any floating dtype and device; `generator` lives on the CPU."""
    logits = logits.detach().double().cpu()
    if settings.temperature == 0:
        return int(logits.argmax())
    ordered, ids = torch.softmax(logits / settings.temperature, 0).sort(descending=True)
    # A token stays while the ones before it hold less than top_p, so the likeliest always does.
    kept = ordered * (ordered.cumsum(0) - ordered < settings.top_p)
    return int(ids[torch.multinomial(kept, 1, generator=generator)])


def generate(
    model: nn.Module, prompt: Sequence[int], settings: SamplingSettings, *, stop_id: int | None = None
) -> list[int]:
    """Ids drawn after the ids of `prompt` (at least one), without `stop_id`, at which drawing ends.

    model: called with tokens [N] int64 and their Documents, returns logits [N, V]. It is put into eval mode meanwhile.
    The training's random numbers are not touched.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(settings.seed)
    stream, begin, was_training = list(prompt), time.monotonic(), model.training
    model.eval()
    try:
        with torch.no_grad():
            for _ in range(settings.max_new_tokens):
                if time.monotonic() - begin > settings.max_seconds:
                    break
                tokens = torch.tensor(stream, device=device)
                logits = model(tokens, Documents.from_lengths([len(stream)], device=device))
                token = draw(logits[-1], settings, generator)
                if token == stop_id:
                    break
                stream.append(token)
    finally:
        model.train(was_training)
    return stream[len(prompt) :]


def sample_text(model: nn.Module, tokenizer: Tokenizer, prompt: str, settings: SamplingSettings) -> Sample:
    """What the model writes at the beginning of a document after `prompt` (which may be empty)."""
    ids = [tokenizer.bos_id, *tokenizer.encode(prompt)]
    drawn = generate(model, ids, settings, stop_id=tokenizer.eos_id)
    # The prompt is decoded along, so that a space or an indent at the seam is kept.
    text = tokenizer.decode([*ids[1:], *drawn])
    before = tokenizer.decode(ids[1:]) if len(ids) > 1 else ""
    return Sample(prompt, text.removeprefix(before), settings)


def sample_answer(
    model: nn.Module, tokenizer: Tokenizer, prompt: Sequence[int], end_id: int, settings: SamplingSettings
) -> Sample:
    """What the model answers to the ids of `prompt`; `end_id` ends an answer."""
    before = tokenizer.decode(prompt)
    text = tokenizer.decode([*prompt, *generate(model, prompt, settings, stop_id=end_id)])
    return Sample(before, text.removeprefix(before), settings)
