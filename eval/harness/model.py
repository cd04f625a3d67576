"""A model under evaluation as a model type of lm-evaluation-harness, by the name `braid`.

Likelihoods and rolling windows follow the harness' own rules, so that figures can be compared with its `hf` type; where
they differ, a docstring says how.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from eval.harness.generation import wanted
from eval.model import Model
from eval.truncation import Side, Truncation
from lm.errors import UserError, did_you_mean
from lm.train.distributed import World, join, launched_size

ROWS = 64
"""Rows handed to the model at a time, between two movements of the progress bar."""
_ARGUMENTS = ("pretrained", "adapter", "revision", "dtype", "max_length", "add_bos_token", "truncation", "batch_size")

Window = tuple[list[int], list[int]]
"""Tokens that are read, and those behind them that are scored."""


@register_model("braid")  # type: ignore[untyped-decorator]
class BraidLM(TemplateLM):  # type: ignore[misc]
    """Every request type of the harness, on `eval.model.Model`. Results come in the order of the requests.

    Under a launcher each rank answers the requests that the harness gives it.
    """

    def __init__(
        self,
        pretrained: str | Model,
        *,
        adapter: str | None = None,
        revision: str | None = None,
        dtype: str | None = None,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        truncation: Side = "left",
        batch_size: int | str | None = None,
        device: str | None = None,
        world: World | None = None,
        **others: Any,
    ) -> None:
        """
        pretrained: a model, or what `open_model` opens. max_length: tokens read at once; left out, the model's
        context, or no limit where none is stated.
        add_bos_token: whether contexts begin with a bos token, never with two; left out, as the tokenizer itself does.
        truncation: what a context that does not fit loses, its beginning (`left`) or its `middle`.
        batch_size: at most so many rows of one forward; the model makes its own batches within that.
        world: the ranks, where the caller has joined them.

        Raises UserError for a model that cannot be opened and for arguments that it does not know.
        """
        super().__init__()
        others.pop("max_batch_size", None)
        for name in others:
            raise UserError(f"model_args: there is no '{name}'.{did_you_mean(name, _ARGUMENTS)}")
        self._world = join() if world is None and launched_size() > 1 else world
        if self._world is not None:
            self._rank, self._world_size = self._world.rank, self._world.size
        self.model = _opened(pretrained, adapter, revision, dtype, device)
        self._device = self.model.device
        self.tokenizer = self.model.tokenizer
        self.max_length = max_length or self.model.context or sys.maxsize
        self.batch_size = batch_size if isinstance(batch_size, int) else ROWS
        self.add_bos_token = self.model.begins_with_bos if add_bos_token is None else add_bos_token
        self.truncation = Truncation(truncation, self.tokenizer.bos_token_id)

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text."""
        id: int | None = self.tokenizer.eos_token_id
        return id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: bos, or eos where the tokenizer has no bos.

        Raises UserError where it has neither.
        """
        id: int | None = self.tokenizer.bos_token_id
        id = self.eot_token_id if id is None else id
        if id is None:
            raise UserError(
                f"{self.model.name}: its tokenizer has neither a bos nor an eos token, so the first token of a text "
                "has nothing to be predicted from"
            )
        return id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **unused: Any) -> list[int]:
        """The ids of a text, behind one bos if that is asked for, or by default if `add_bos_token` says so."""
        return self.model.encode(string, bos=self.add_bos_token if add_special_tokens is None else add_special_tokens)

    def _encode_pair(self, context: str, continuation: str) -> Window:
        """Context and continuation as they are cut together; white space between them belongs to the continuation.

        A token that reaches across the border does, too: the harness' own rule would lose its letters.
        """
        alone, whole = self.tok_encode(context.rstrip()), self.tok_encode(context + continuation)
        pairs = enumerate(zip(alone, whole, strict=False))
        shared = next((place for place, (one, other) in pairs if one != other), min(len(alone), len(whole)))
        return whole[:shared] or [self.prefix_token_id], whole[shared:]

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **unused: Any,
    ) -> list[tuple[float, bool]]:
        """Of each (texts, context, continuation): log p of the continuation, and whether it is the likeliest one.

        A context that does not fit is shortened. A continuation longer than `max_length` is scored in windows.
        """
        windows: list[list[Window]] = [
            self._windows(scored, read[-1]) if len(scored) > self.max_length else [(read, scored)]
            for _, read, scored in requests
        ]
        with self.truncation.reporting():
            found = self._score(windows, disable_tqdm)
        for (pair, _, _), result in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", pair, result)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of each text in disjoint windows of `max_length` tokens, every token scored once.

        The first window begins with one bos (or eos); the last is filled up with tokens before it, which are not
        scored again.
        """
        texts = [request.args[0] for request in requests]
        windows: list[list[Window]] = []
        for text in texts:
            ids = self.model.encode(text)
            windows.append(self._windows(ids[1:] if ids[:1] == [self.prefix_token_id] else ids, self.prefix_token_id))
        found = [total for total, _ in self._score(windows, disable_tqdm)]
        for text, total in zip(texts, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The likeliest continuation of each context, up to a stop string, the end of text or `max_gen_toks` tokens.

        A context leaves room for `max_gen_toks` within `max_length`. Raises UserError where a task asks for more than
        that, or for anything but the likeliest tokens.
        """
        asked = [wanted(request.args[1], self.max_length) for request in requests]
        with self.truncation.reporting():
            prompts = [
                self.truncation.fit(
                    self.tok_encode(request.args[0]) or [self.prefix_token_id], self.max_length - one.max_new_tokens
                )
                for request, one in zip(requests, asked, strict=True)
            ]
        texts = [""] * len(requests)
        with self._bar("generate_until", len(requests), disable_tqdm) as bar:
            for one in dict.fromkeys(asked):
                chosen = [place for place, other in enumerate(asked) if other == one]
                for places in self._longest_first(chosen, prompts):
                    written = self.model.generate([prompts[place] for place in places], one.max_new_tokens, one.stop)
                    for place, ids in zip(places, written, strict=True):
                        texts[place] = self.model.decode(ids)
                        self.cache_hook.add_partial("generate_until", requests[place].args, texts[place])
                    bar.update(len(places))
        return texts

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as the tokenizer's template writes it. Raises UserError for a tokenizer without one."""
        if not self.tokenizer.chat_template:
            raise UserError(f"{self.model.name}: its tokenizer has no chat template")
        text: str = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return text

    @property
    def tokenizer_name(self) -> str:
        """Distinguishes prompts that the harness keeps for another run."""
        return self.model.name.replace("/", "__")

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside the results."""
        return {
            "model_num_parameters": self.model.model.num_parameters(),
            "model_dtype": str(self.model.model.dtype),
            "model_sha": self.model.fingerprint(),
            "max_length": self.max_length,
            "add_bos_token": self.add_bos_token,
            "truncation": self.truncation.side,
        }

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor [...] of each rank as [ranks, ...], on the CPU."""
        return torch.stack(self._gather(tensor.cpu()))

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """What each rank gave, on rank `dst`; None on the others."""
        gathered = self._gather(obj)
        return gathered if self.rank == dst else None

    def barrier(self) -> None:
        """Waits until every rank is here."""
        self._gather(None)

    def _gather(self, value: Any) -> list[Any]:
        return [value] if self._world is None else self._world.gather(value)

    def _windows(self, ids: list[int], prefix: int) -> list[Window]:
        rolling = get_rolling_token_windows(ids, prefix_token=prefix, max_seq_len=self.max_length, context_len=1)
        return [make_disjoint_window(window) for window in rolling]

    def _score(self, requests: list[list[Window]], disable_tqdm: bool) -> list[tuple[float, bool]]:
        """Of each request's windows together: log p of what is scored, and whether all of it is the likeliest."""
        owners = [owner for owner, windows in enumerate(requests) for _ in windows]
        windows = [window for windows in requests for window in windows]
        rows = [self.truncation.fit(read, self.max_length + 1 - len(scored)) + scored for read, scored in windows]
        totals, greedy = [0.0] * len(requests), [True] * len(requests)
        with self._bar("loglikelihood", len(rows), disable_tqdm) as bar:
            for places in self._longest_first(range(len(rows)), rows):
                scores = self.model.token_scores([rows[place] for place in places])
                for place, row in zip(places, scores, strict=True):
                    first = len(row.nll) - len(windows[place][1])
                    totals[owners[place]] -= float(row.nll[first:].sum())
                    greedy[owners[place]] &= bool(row.greedy[first:].all())
                bar.update(len(places))
        return list(zip(totals, greedy, strict=True))

    def _longest_first(self, places: Sequence[int], rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        ordered = sorted(places, key=lambda place: -len(rows[place]))
        return (ordered[begin : begin + self.batch_size] for begin in range(0, len(ordered), self.batch_size))

    def _bar(self, name: str, total: int, disable: bool) -> tqdm[None]:
        return tqdm(total=total, desc=name, disable=disable or self.rank != 0)


def _opened(
    pretrained: str | Model, adapter: str | None, revision: str | None, dtype: str | None, device: str | None
) -> Model:
    if isinstance(pretrained, Model):
        return pretrained
    from eval.opening import open_model

    if dtype is not None and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise UserError(f"model_args: dtype '{dtype}' is not a type of torch, such as float32 or bfloat16")
    model = open_model(
        pretrained, adapter=adapter, revision=revision, dtype=None if dtype is None else getattr(torch, dtype)
    )
    if device is not None:
        model.model.to(device)
    return model
