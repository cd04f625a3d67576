"""A model under evaluation as a model type of lm-evaluation-harness, by the name `braid`.

Likelihoods and rolling windows follow the harness' own rules, so that figures can be compared with its `hf` type; where
they differ, a docstring says how.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM, hash_args
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from eval.batches import batches
from eval.harness.generation import wanted
from eval.harness.truncation import Side, Truncation
from eval.model import Model
from eval.runner import require_positions, tokenizer_hash
from eval.text import prefix_token
from lm.errors import UserError, did_you_mean
from lm.train.distributed import World, join, launched_size

ROWS = 64
"""Rows of one forward at most, where the caller does not say."""
_ARGUMENTS = ("pretrained", "adapter", "revision", "dtype", "max_length", "add_bos_token", "truncation", "batch_size")

Window = tuple[list[int], list[int]]
"""Tokens that are read, and those behind them that are scored."""
Likelihood = tuple[float, bool]
"""log p of what is scored, and whether all of it is the likeliest."""
_SHORTENED = "shortened"


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

        Raises UserError for a model that cannot be opened, for arguments that it does not know, and for a `max_length`
        beyond the positions that the model has embeddings for.
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
        if max_length is not None:
            require_positions(self.model, [max_length], "max_length")
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
        """What stands before a text without context; see `prefix_token`."""
        return prefix_token(self.tokenizer, self.model.name)

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
    ) -> list[Likelihood]:
        """Of each (texts, context, continuation): log p of the continuation, and whether it is the likeliest one.

        A context that does not fit is shortened. A continuation longer than `max_length` is scored in windows.
        """
        with self.truncation.reporting():
            windows: list[list[Window]] = [
                self._windows(scored, read[-1])
                if len(scored) > self.max_length
                else [(self._fit(read, self.max_length + 1 - len(scored), "loglikelihood", pair), scored)]
                for pair, read, scored in requests
            ]

        def keep(place: int, found: Likelihood) -> None:
            self.cache_hook.add_partial("loglikelihood", requests[place][0], found)

        return self._score(windows, keep, disable_tqdm)

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

        def keep(place: int, found: Likelihood) -> None:
            self.cache_hook.add_partial("loglikelihood_rolling", (texts[place],), found[0])

        return [total for total, _ in self._score(windows, keep, disable_tqdm)]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The likeliest continuation of each context, up to a stop string, the end of text or `max_gen_toks` tokens.

        A context leaves room for `max_gen_toks` within `max_length`. Raises UserError where a task asks for more than
        that, or for anything but the likeliest tokens.
        """
        asked = [wanted(request.args[1], self.max_length) for request in requests]
        with self.truncation.reporting():
            prompts = [
                self._fit(
                    self.tok_encode(request.args[0]) or [self.prefix_token_id],
                    self.max_length - one.max_new_tokens,
                    "generate_until",
                    request.args,
                )
                for request, one in zip(requests, asked, strict=True)
            ]
        texts = [""] * len(requests)
        with self._bar("generate_until", len(requests), disable_tqdm) as bar:
            for one in dict.fromkeys(asked):
                chosen = [place for place, other in enumerate(asked) if other == one]
                for places in self._batches({place: len(prompts[place]) + one.max_new_tokens for place in chosen}):
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

    def shortened(self, requests: Iterable[Instance]) -> set[int]:
        """A number for each prompt that did not fit, of these requests or others that this process was asked.

        Those of requests that an earlier process answered are known where its answers are kept.
        """
        found, kept = set(self.truncation.shortened), self.cache_hook.dbdict
        if kept is not None:
            keys = (hash_args(_SHORTENED, (request.request_type, *request.args)) for request in requests)
            found |= {kept[key] for key in keys if key in kept}
        return found

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside the results: all that answers depend on but the requests."""
        return {
            "model_num_parameters": self.model.model.num_parameters(),
            "model_dtype": str(self.model.model.dtype),
            "model_sha": self.model.fingerprint(),
            "tokenizer_hash": tokenizer_hash(self.model),
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

    def _fit(self, ids: list[int], room: int, kind: str, texts: tuple[Any, ...]) -> list[int]:
        """The ids, or `room` of them, which is remembered beside the answer to the request of this kind."""
        kept = self.truncation.fit(ids, room)
        if len(kept) < len(ids):
            self.cache_hook.add_partial(_SHORTENED, (kind, *texts), self.truncation.number(ids))
        return kept

    def _score(
        self, requests: list[list[Window]], keep: Callable[[int, Likelihood], None], disable_tqdm: bool
    ) -> list[Likelihood]:
        """The likelihood of each request's windows together; `keep(request, found)` as soon as all of them are read."""
        owners = [owner for owner, windows in enumerate(requests) for _ in windows]
        windows = [window for windows in requests for window in windows]
        rows = [read + scored for read, scored in windows]
        totals, greedy = [0.0] * len(requests), [True] * len(requests)
        unread = [len(windows) for windows in requests]
        with self._bar("loglikelihood", len(rows), disable_tqdm) as bar:
            for places in self._batches({place: len(row) for place, row in enumerate(rows)}):
                scores = self.model.token_scores([rows[place] for place in places])
                for place, row in zip(places, scores, strict=True):
                    owner, first = owners[place], len(row.nll) - len(windows[place][1])
                    totals[owner] -= float(row.nll[first:].sum())
                    greedy[owner] &= bool(row.greedy[first:].all())
                    unread[owner] -= 1
                    if not unread[owner]:
                        keep(owner, (totals[owner], greedy[owner]))
                bar.update(len(places))
        return list(zip(totals, greedy, strict=True))

    def _batches(self, lengths: Mapping[int, int]) -> Iterator[list[int]]:
        """The places of rows of these lengths in batches of one forward each: no more is lost when a run is killed."""
        places = list(lengths)
        for batch in batches(list(lengths.values()), self.model.batch_tokens):
            for begin in range(0, len(batch), self.batch_size):
                yield [places[index] for index in batch[begin : begin + self.batch_size]]

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
