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

import lm.hf  # noqa: F401 - registers Braid models with the Auto classes
from lm.errors import UserError, first_line
from lm.hf.loading import from_pretrained, load_model


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen: the most likely one, or drawn from the `top_p` share at a temperature."""

    max_new_tokens: int = 256
    greedy: bool = False
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """The same as arguments of transformers' `generate`."""
        chosen: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "do_sample": not self.greedy}
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


def generate(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, sampling: Sampling) -> None:
    """Continues a prompt; text goes to stdout, speed to stderr. Ctrl-C ends the text and raises KeyboardInterrupt."""
    inputs = tokenizer(prompt, return_tensors="pt")
    if inputs["input_ids"].shape[1] == 0:
        raise UserError("--prompt: it is empty and this tokenizer begins no text by itself; give some text")
    _prepare(model, sampling)
    stream = Stream(tokenizer)
    try:
        _answer(model, inputs, sampling, stream)
    finally:
        print(stream.speed, file=sys.stderr)


def chat(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sampling: Sampling) -> None:
    """A conversation over stdin and stdout. Ctrl-C ends an answer, or the conversation where it waits for a line."""
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template; `braid generate` continues plain text")
    _prepare(model, sampling)
    messages: list[dict[str, str]] = []
    while True:
        try:
            messages.append({"role": "user", "content": input("> ")})
        except (EOFError, KeyboardInterrupt):
            print()
            return
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        stream = Stream(tokenizer)
        try:
            _answer(model, inputs, sampling, stream)
        except KeyboardInterrupt:
            print("(interrupted)", file=sys.stderr)
        print(stream.speed, file=sys.stderr)
        messages.append({"role": "assistant", "content": tokenizer.decode(stream.tokens, skip_special_tokens=True)})


def load(folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a Hugging Face folder or Hub id. Raises UserError where there are none."""
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


def _answer(model: PreTrainedModel, inputs: Any, sampling: Sampling, stream: Stream) -> None:
    pad = model.generation_config.pad_token_id
    eos = model.generation_config.eos_token_id
    if pad is None and eos is not None:  # one row needs no padding, but transformers asks for a token
        pad = eos[0] if isinstance(eos, list) else eos
    inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    try:
        model.generate(**inputs, **sampling.arguments, pad_token_id=pad, streamer=stream)
    except KeyboardInterrupt:
        stream.end()
        raise
