"""Text from any causal Hugging Face folder, streamed to the terminal: one prompt, or a conversation."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TextStreamer
from transformers.utils import CONFIG_NAME

import lm.hf  # noqa: F401 - registers Braid models with the Auto classes
from lm.errors import UserError, first_line
from lm.hf.loading import from_pretrained, load_model
from lm.hf.positions import learned_positions, stated_context, without_reminders

USUAL_TOKENS = 256
"""Written at most, where nothing else is asked for."""
LEAVE = ("/quit", "/exit")
"""What ends a conversation."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the most likely one, or drawn from the `top_p` share at a temperature.

    max_new_tokens: None for the usual number, or as many as the model's context has room for.
    """

    max_new_tokens: int | None = None
    greedy: bool = False
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The choice of a token as arguments of transformers' `generate`."""
        chosen: dict[str, Any] = {"do_sample": not self.greedy}
        if not self.greedy:
            chosen |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return chosen


class Stream(TextStreamer):  # type: ignore[misc]
    """Prints text as soon as whole words are there, and notes when each token came."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.tokens: list[int] = []
        self.times: list[float] = []
        self.prompt_tokens = 0

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())
        if len(self.times) == 1:
            self.prompt_tokens = value.numel()
        else:
            self.tokens += value.flatten().tolist()
        super().put(value)

    @property
    def speed(self) -> str:
        """One line: tokens of prompt and answer, seconds to the first token, tokens per second after it."""
        if not self.tokens:
            return f"{self.prompt_tokens} tokens read, none written"
        line = f"{self.prompt_tokens} tokens read in {self.times[1] - self.times[0]:.2f} s, {len(self.tokens)} written"
        if len(self.tokens) > 1:
            line += f", {(len(self.tokens) - 1) / (self.times[-1] - self.times[1]):.1f} tokens/s"
        return line


class Room:
    """How many tokens may follow a prompt; what has to be said of that goes to stderr."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self._learned = learned_positions(model)
        self._context = self._learned or stated_context(model, tokenizer)
        self._extrapolates = False

    def behind(self, prompt: int, wanted: int | None, what: str) -> int:
        """At most so many tokens behind a prompt of so many: those wanted, or else as many of the usual number as fit.

        Rotary and recurrent models go beyond their context where that is asked for. Raises UserError, which begins
        with `what`, where a model has no embedding of the positions.
        """
        tokens, context = wanted or USUAL_TOKENS, self._context
        if context is None or prompt + tokens <= context:
            return tokens
        fits = context - prompt
        if self._learned is not None and fits < 1:
            raise UserError(f"{what}: {prompt:,} tokens leave no room in the {context:,} positions of the model")
        if fits > 0 and (wanted is None or self._learned is not None):
            print(f"{fits:,} tokens at most: the model's context of {context:,} ends there", file=sys.stderr)
            return fits
        if not self._extrapolates:
            print(f"the model is made for {context:,} tokens: a longer text extrapolates", file=sys.stderr)
            self._extrapolates = True
        return tokens


def generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling) -> None:
    """Continues a prompt; text goes to stdout, speed to stderr. Ctrl-C ends the text and raises KeyboardInterrupt."""
    with without_reminders():
        inputs = tokenizer(prompt, return_tensors="pt")
    read = inputs["input_ids"].shape[1]
    if read == 0:
        raise UserError("--prompt: it is empty and this tokenizer begins no text by itself; give some text")
    tokens = Room(model, tokenizer).behind(read, sampling.max_new_tokens, "--prompt")
    _prepare(model, sampling)
    stream = Stream(tokenizer)
    try:
        _answer(model, inputs, tokens, sampling, stream)
    finally:
        print(stream.speed, file=sys.stderr)


def chat(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> None:
    """A conversation over stdin and stdout, until LEAVE or the end of stdin.

    Ctrl-C ends an answer, or the conversation where it waits for a line. Raises UserError where there is no chat
    template, or where the conversation has outgrown the model's positions.
    """
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template; `braid generate` continues plain text")
    _prepare(model, sampling)
    room = Room(model, tokenizer)
    messages: list[dict[str, str]] = []
    while True:
        try:
            line = input("> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if line.strip() in LEAVE:
            return
        messages.append({"role": "user", "content": line})
        with without_reminders():
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
        tokens = room.behind(inputs["input_ids"].shape[1], sampling.max_new_tokens, "the conversation")
        stream = Stream(tokenizer)
        try:
            _answer(model, inputs, tokens, sampling, stream)
        except KeyboardInterrupt:
            print("(interrupted)", file=sys.stderr)
        print(stream.speed, file=sys.stderr)
        messages.append({"role": "assistant", "content": tokenizer.decode(stream.tokens, skip_special_tokens=True)})


def load(folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a Hugging Face folder or Hub id. Raises UserError where there are none."""
    if Path(folder).is_dir() and not Path(folder, CONFIG_NAME).is_file():
        raise UserError(f"the folder {folder} holds no {CONFIG_NAME}: name a run, an export or a Hugging Face folder")
    try:
        model = load_model(folder)
        tokenizer = from_pretrained(AutoTokenizer, folder)
    except (OSError, ValueError) as error:
        where = folder if Path(folder).exists() else f"{folder} is no folder here, and on the Hub"
        raise UserError(f"{where}: {first_line(error)}") from None
    return model, tokenizer


def _prepare(model: PreTrainedModel, sampling: Sampling) -> None:
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    if sampling.seed is not None:
        torch.manual_seed(sampling.seed)


def _answer(model: PreTrainedModel, inputs: Any, tokens: int, sampling: Sampling, stream: Stream) -> None:
    pad = model.generation_config.pad_token_id
    eos = model.generation_config.eos_token_id
    if pad is None and eos is not None:  # one row needs no padding, but transformers asks for a token
        pad = eos[0] if isinstance(eos, list) else eos
    inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    try:
        with without_reminders():
            model.generate(**inputs, **sampling.arguments, max_new_tokens=tokens, pad_token_id=pad, streamer=stream)
    except KeyboardInterrupt:
        stream.end()
        raise
