"""A causal Hugging Face model under evaluation: likelihoods and greedy text of rows of any lengths.

Neither the batch, nor the padding, nor the rows before it change a result: rows are scored with padding behind them,
where causal models do not look, and continued with padding before them, masked. Where rotary angles depend on the
longest row at hand, rows come alone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from eval.batches import batches, padded
from eval.options import BATCH_TOKENS
from eval.positions import fixed_angles, forget_longer_rows
from lm.data.fingerprint import content_digest, digest
from lm.hf.positions import stated_context

LOGIT_ROWS = 512
"""Positions whose logits over the whole vocabulary exist at a time."""
PROBE_TOKENS = 11
BATCH_NOISE = 0.5
"""What a batch may change in a logit, in their standard deviations: rounding in bf16 is below, a mistake above."""
_NAMES_ONLY = ("_name_or_path", "transformers_version", "auto_map", "architectures", "dtype")

_log = logging.getLogger(__name__)

Row = Sequence[int]


@dataclass(frozen=True)
class TokenScores:
    """How a model predicts a row of n tokens, each but the first from all before it.

    nll: [n-1] float64, -log p in nats. greedy: [n-1] bool, whether the token is the likeliest one.
    """

    nll: NDArray[np.float64]
    greedy: NDArray[np.bool_]


class Model:
    """A causal model in evaluation mode, and its tokenizer."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        """name: what reports call it. batch_tokens: padded tokens of one forward; a longer row is a batch alone."""
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.batch_tokens = batch_tokens
        self._eos = _eos_ids(model, tokenizer)
        # The model's own may ask for sampling or penalties, which `generate` would fill in.
        model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=sorted(self._eos) or None,
            pad_token_id=min(self._eos, default=0),
        )

    @property
    def device(self) -> torch.device:
        """Where the model's embedding lies, and so its input belongs."""
        device: torch.device = self.model.get_input_embeddings().weight.device
        return device

    @property
    def context(self) -> int | None:
        """The longest row in tokens that the model, or its tokenizer, says it is made for; None if neither does."""
        return stated_context(self.model, self.tokenizer)

    @cached_property
    def _fingerprint(self) -> str:
        config = json.loads(self.model.config.to_json_string(use_diff=False))

        def parts() -> Iterator[bytes]:
            yield digest({key: value for key, value in config.items() if key not in _NAMES_ONLY}).encode()
            for name, tensor in sorted(self.model.state_dict().items()):
                yield name.encode()
                yield tensor.flatten().contiguous().cpu().view(torch.uint8).numpy().tobytes()

        return content_digest(parts())

    def fingerprint(self) -> str:
        """16 hex digits that name configuration and weights, whatever folder they came from."""
        return self._fingerprint

    def encode(self, text: str, bos: bool = False) -> list[int]:
        """The ids of a text alone; with `bos` behind the tokenizer's bos, if it has one, which is there once."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        first = self.tokenizer.bos_token_id
        return [first, *ids] if bos and first is not None and ids[:1] != [first] else ids

    @cached_property
    def begins_with_bos(self) -> bool:
        """Whether the tokenizer by itself puts a bos before a text, as the model then knows it from training."""
        ids: list[int] = self.tokenizer("x").input_ids
        return bool(ids) and ids[0] == self.tokenizer.bos_token_id

    def encode_prompt(self, text: str) -> list[int]:
        """The ids of a text to go on from, behind a bos where the tokenizer puts one."""
        return self.encode(text, bos=self.begins_with_bos)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def token_nll(self, rows: Sequence[Row]) -> list[NDArray[np.float64]]:
        """For each row of n tokens -log p(row[t+1] | row[..t]) in nats, [n-1] float64."""
        return [scores.nll for scores in self.token_scores(rows)]

    def token_scores(self, rows: Sequence[Row]) -> list[TokenScores]:
        """For each row of at least one token, how its tokens are predicted. Raises ValueError for an empty row."""
        if not all(len(row) for row in rows):
            raise ValueError("an empty row has no first token to begin from")
        found: list[TokenScores] = [TokenScores(np.empty(0), np.empty(0, np.bool_))] * len(rows)
        for indices in self._batches([len(row) for row in rows]):
            batch = [rows[index] for index in indices]
            for index, scores in zip(indices, self._score(batch), strict=True):
                found[index] = scores
        return found

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """As `batches`; rows whose angles depend on the longest of their batch come alone."""
        for batch in batches(lengths, self.batch_tokens):
            apart = self._fixed_angles is not None and lengths[batch[0]] > self._fixed_angles
            yield from [[index] for index in batch] if apart else [batch]

    @cached_property
    def _fixed_angles(self) -> int | None:
        limit = fixed_angles(self.model.config)
        if limit is not None:
            _log.warning(
                "%s: beyond %d tokens its rotary angles depend on the longest row, so such rows are read one by one",
                self.name,
                limit,
            )
        return limit

    @torch.no_grad()
    def _score(self, rows: Sequence[Row]) -> Iterator[TokenScores]:
        forget_longer_rows(self.model)
        ids, real = padded(rows, left=False)
        ids, predicted = ids.to(self.device), real[:, 1:].to(self.device)
        # The last column predicts nothing, and may be one more than a model's table of positions has.
        states, head = self._states(ids[:, : max(ids.shape[1] - 1, 1)])
        states, targets = states[:, : predicted.shape[1]][predicted], ids[:, 1:][predicted]
        parts = [
            _scores(head(some), wanted)
            for some, wanted in zip(states.split(LOGIT_ROWS), targets.split(LOGIT_ROWS), strict=True)
        ]
        nll = torch.cat([part[0] for part in parts]).double().cpu().numpy()
        greedy = torch.cat([part[1] for part in parts]).cpu().numpy()
        borders = np.cumsum([len(row) - 1 for row in rows])[:-1]
        return map(TokenScores, np.split(nll, borders), np.split(greedy, borders))

    def _states(self, ids: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """What stands before the logits of ids [rows, columns], and how they are made from it."""
        if self._has_plain_head:
            return self.model.base_model(input_ids=ids, use_cache=False)[0], self.model.get_output_embeddings()
        return self.model(input_ids=ids, use_cache=False).logits, nn.Identity()

    @cached_property
    def _has_plain_head(self) -> bool:
        """Whether logits are the output head on the last hidden states and nothing more; found out by trying."""
        ids = torch.arange(PROBE_TOKENS, device=self.device)[None] % self.model.config.vocab_size
        head = self.model.get_output_embeddings()
        if head is not None:
            logits = head(self.model.base_model(input_ids=ids, use_cache=False)[0])
            if torch.equal(logits, self.model(input_ids=ids, use_cache=False).logits):
                return True
        _log.warning(
            "%s: its logits are more than an output head on the last hidden states (scaled or capped, it may be), so "
            "those of a whole batch are held in memory at once",
            self.name,
        )
        return False

    def generate(self, prompts: Sequence[Row], max_new_tokens: int, stop: Sequence[str] = ()) -> list[list[int]]:
        """The likeliest next tokens of each prompt, up to the end of text or a stop string, which are cut off.

        A stop string may spell a special token. Where one begins inside a token, the text before it is encoded anew.
        Raises ValueError for an empty prompt.
        """
        if not all(len(prompt) for prompt in prompts):
            raise ValueError("an empty prompt has no last token to go on from")
        found: list[list[int]] = [[]] * len(prompts)
        for batch in self._batches([len(prompt) + max_new_tokens for prompt in prompts]):
            for indices in [batch] if len(batch) == 1 or self._can_batch else [[index] for index in batch]:
                written = self._generate([prompts[index] for index in indices], max_new_tokens, stop)
                for index, ids in zip(indices, written, strict=True):
                    found[index] = self._cut(ids, stop)
        return found

    @torch.no_grad()
    def _generate(self, prompts: Sequence[Row], max_new_tokens: int, stop: Sequence[str]) -> list[list[int]]:
        forget_longer_rows(self.model)
        begin = max(map(len, prompts))
        criteria = StoppingCriteriaList([_Stopped(lambda row: self._begins_stop(row[begin:], stop))] if stop else [])
        out = self.model.generate(
            **self._behind_padding(prompts),
            max_new_tokens=max_new_tokens,
            stopping_criteria=criteria,
            eos_token_id=sorted(self._ends(stop)) or None,
        )
        return [row[begin:] for row in out.tolist()]

    def _behind_padding(self, prompts: Sequence[Row]) -> dict[str, Tensor]:
        ids, real = padded(prompts, left=True)
        return {"input_ids": ids.to(self.device), "attention_mask": real.long().to(self.device)}

    @cached_property
    @torch.no_grad()
    def _can_batch(self) -> bool:
        """Whether a prompt behind padding, beside another, is continued as it is alone; found out by trying."""

        def logits(*prompts: Row) -> Tensor:
            padded = self._behind_padding(prompts)
            out = self.model.generate(**padded, max_new_tokens=2, output_logits=True, return_dict_in_generate=True)
            return torch.stack([step[0] for step in out.logits]).float()

        ids = [place % self.model.config.vocab_size for place in range(PROBE_TOKENS)]
        alone, beside = logits(ids), logits(ids, ids * 4)
        same_token = bool(alone[0].argmax() == beside[0].argmax())
        steps = min(len(alone), len(beside)) if same_token else 1  # behind another token all is different
        if (alone[:steps] - beside[:steps]).abs().max() <= BATCH_NOISE * alone.std():
            return True
        _log.warning("%s: it writes another text in a batch than alone, so its samples are asked one by one", self.name)
        return False

    def _begins_stop(self, ids: Sequence[int], stop: Sequence[str]) -> bool:
        text = self.decode(ids)
        return any(word in text for word in stop)

    def _ends(self, stop: Sequence[str]) -> set[int]:
        special = self.tokenizer.added_tokens_decoder.items()
        return self._eos | {id for id, token in special if token.special and token.content in stop}

    def _cut(self, ids: list[int], stop: Sequence[str]) -> list[int]:
        ends = self._ends(stop)
        end = next((place for place, id in enumerate(ids) if id in ends), len(ids))
        ids = ids[:end]
        text = self.decode(ids)
        at = min((text.find(word) for word in stop if word in text), default=None)
        if at is None:
            return ids
        while ids and len(self.decode(ids)) > at:
            ids = ids[:-1]
        return ids + self.encode(text[len(self.decode(ids)) : at])


class _Stopped(StoppingCriteria):  # type: ignore[misc]
    """Ends each row by itself, when `is_done` says so of its ids."""

    def __init__(self, is_done: Callable[[list[int]], bool]) -> None:
        self.is_done = is_done

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return torch.tensor([self.is_done(row) for row in input_ids.tolist()], device=input_ids.device)


def _scores(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """-log p of targets [N], and whether they are the likeliest, by logits [N, vocabulary]."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    wanted = logits.gather(1, targets[:, None])[:, 0]
    return logits.logsumexp(1) - wanted, logits.argmax(1) == targets


def _eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token that ends a text, by the model's or the tokenizer's word."""
    named = model.generation_config.eos_token_id if model.generation_config is not None else None
    ids = named if isinstance(named, list) else [named]
    return {id for id in (*ids, tokenizer.eos_token_id) if id is not None}
