"""LongBench v1 and LongBench-E as tasks: its own prompts, truncated in the middle, its own scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

import yaml
from pydantic import ConfigDict
from pydantic.dataclasses import dataclass as checked

from eval.longbench import chinese
from eval.longbench.data import Row, read_rows, require_data
from eval.model import Model
from eval.options import LongBenchOptions
from eval.scorers import METRICS, Metric, classification
from eval.tasks import CannotBuildError, Haystack, Sample, TokenCounter
from lm.errors import UserError, did_you_mean

BUCKETS = {"0-4k": (0, 4000), "4-8k": (4000, 8000), "8k+": (8000, None)}
"""LongBench-E's groups of rows by their words, [first, last)."""
_CHINESE: dict[str, Metric] = {"f1_zh": chinese.f1_zh, "rouge_l_zh": chinese.rouge_l_zh}


@checked(frozen=True, config=ConfigDict(extra="forbid"))
class Rules:
    """What the benchmark lays down for a dataset; see tasks.yaml."""

    category: str
    language: str
    metric: str
    max_new_tokens: int
    prompt: str
    extended: bool = False
    plain: bool = False
    first_line: bool = False


def _read_rules() -> dict[str, Rules]:
    text = resources.files(__package__).joinpath("tasks.yaml").read_text(encoding="utf-8")
    return {name: Rules(**rules) for name, rules in yaml.safe_load(text).items()}


RULES = _read_rules()
"""The rules of each dataset by its name, in the benchmark's order."""


@dataclass(frozen=True)
class LongBenchTask:
    """A dataset, or those rows of it that fall into a bucket of LongBench-E, for one model.

    chat: whether prompts go into the tokenizer's chat template, but for those that the benchmark keeps plain.
    """

    name: str
    rules: Rules
    rows: Sequence[Row]
    model: Model
    chat: bool

    @property
    def metric(self) -> str:
        return self.rules.metric

    @property
    def texts(self) -> tuple[str, ...]:
        return ()  # its rows bring their own

    def samples(self, tokenizer: TokenCounter, length: int, count: int, seed: int, haystack: Haystack) -> list[Sample]:
        """The first `count` rows, each within `length` tokens of the model's together with its answer.

        Raises CannotBuildError where nothing of a context would be left.
        """
        return [self._sample(index, row, length) for index, row in enumerate(self.rows[:count])]

    def score(self, prediction: str, sample: Sample) -> float:
        """The benchmark's score of one prediction, from 0 to 1."""
        if self.rules.first_line:
            prediction = prediction.lstrip("\n").split("\n")[0]
        if self.metric == "classification":
            return classification(prediction, sample.answers, self.rows[int(sample.meta["row"])].classes)
        return {**METRICS, **_CHINESE}[self.metric](prediction, sample.answers)

    def _sample(self, index: int, row: Row, length: int) -> Sample:
        text = self.rules.prompt.format(context=row.context, input=row.input)
        room = length - self.rules.max_new_tokens
        prompt, tokens, whole = fit_middle(self.model, text, room, self._in_chat)
        if prompt is None:
            raise CannotBuildError(
                f"{self.name} needs {self.rules.max_new_tokens} tokens for its answer, and the {max(room, 0)} that are "
                f"left of {length} are too few for its prompt. Ask for a longer length, or leave the task out."
            )
        meta = {"tokens": tokens, "row": index, "words": row.words, "whole": int(whole)}
        return Sample(self.name, row.id or str(index), length, prompt, row.answers, self.rules.max_new_tokens, meta)

    def _in_chat(self, text: str) -> str:
        if not self.chat or self.rules.plain:
            return text
        message = [{"role": "user", "content": text}]
        written: str = self.model.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        return written


def fit_middle(model: Model, text: str, room: int, wrap: Callable[[str], str] = str) -> tuple[str | None, int, bool]:
    """The text, wrapped, in at most `room` tokens; how many it has; whether it is all there.

    Where it is longer, it is cut as LongBench does: the first and the last half of what fits are turned into text again
    and joined. Their tokens may be more than before, and what `wrap` adds needs room, too; then less is kept.
    None for a text where nothing would be left.
    """

    def size(prompt: str) -> int:
        return len(model.encode_prompt(prompt))

    prompt, ids, keep = wrap(text), model.encode_prompt(text), room
    if (tokens := size(prompt)) <= room:
        return prompt, tokens, True
    while keep >= 2:
        half = keep // 2
        prompt = wrap(model.decode(ids[:half]) + model.decode(ids[-half:]))
        if (tokens := size(prompt)) <= room:
            return prompt, tokens, False
        keep = max(keep - (tokens - room), 2) if keep > 2 else 0
    return None, tokens, False


def read_longbench(options: LongBenchOptions) -> dict[str, list[Row]]:
    """The rows of the tasks over a copy of the data, see `read_rows`; of all, or those named, in the benchmark's order.

    Raises:
        UserError: an unknown name, data that are not there or whose answers cannot be scored, or jieba is missing.
    """
    known = {name: rules for name, rules in RULES.items() if rules.extended or not options.extended}
    for name in options.tasks:
        if name not in known:
            which = "LongBench-E" if options.extended else "LongBench"
            raise UserError(
                f"--longbench-tasks: {which} has no task '{name}'.{did_you_mean(name, known)} Known: {', '.join(known)}"
            )
    chosen = {name: rules for name, rules in known.items() if not options.tasks or name in options.tasks}
    try:
        require_data(options.data)
    except UserError as error:
        raise UserError(f"--longbench: {error}") from None
    _require_jieba(chosen)
    found = {}
    for name, rules in chosen.items():
        file = f"{name}_e" if options.extended else name
        found[name] = read_rows(options.data, file)
        _require_gold(rules, found[name], f"{options.data}, {file}")
    return found


def _require_gold(rules: Rules, rows: Sequence[Row], where: str) -> None:
    """Refuses rows that no answer could be scored by, before any is asked."""
    for number, row in enumerate(rows, 1):
        if rules.metric == "integer_share" and not all(re.search(r"\d", answer) for answer in row.answers):
            raise UserError(
                f"{where}, row {number}: the score compares integers, and an answer has none: {row.answers}"
            )
        if rules.metric == "classification" and not row.classes:
            raise UserError(f"{where}, row {number}: the score compares classes, and there are none in all_classes")


def longbench_tasks(model: Model, rows: Mapping[str, Sequence[Row]], options: LongBenchOptions) -> list[LongBenchTask]:
    """What is asked of a model. Each dataset of LongBench-E is three tasks by length, named such as `qasper_e/4-8k`.

    Raises UserError for a tokenizer without the chat template that is asked for.
    """
    if options.apply_chat_template and not model.tokenizer.chat_template:
        raise UserError(f"{model.name}: its tokenizer has no chat template")
    return [
        LongBenchTask(part, RULES[name], some, model, options.apply_chat_template)
        for name, all_rows in rows.items()
        for part, some in (_buckets(f"{name}_e", all_rows) if options.extended else {name: all_rows}).items()
    ]


def _buckets(name: str, rows: Sequence[Row]) -> dict[str, list[Row]]:
    parts = {
        f"{name}/{bucket}": [row for row in rows if first <= row.words and (last is None or row.words < last)]
        for bucket, (first, last) in BUCKETS.items()
    }
    return {part: some for part, some in parts.items() if some}


def _require_jieba(chosen: Mapping[str, Rules]) -> None:
    needing = [name for name, rules in chosen.items() if rules.metric in _CHINESE]
    if needing:
        try:
            chinese.cut("")
        except UserError as error:
            others = [name for name in chosen if name not in needing]
            instead = f", or ask for others: --longbench-tasks {','.join(others)}" if others else ""
            raise UserError(f"{', '.join(needing)}: {error}{instead}") from None
