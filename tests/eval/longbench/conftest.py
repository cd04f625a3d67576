"""A copy of LongBench with rows made by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eval.longbench.data import Row
from eval.longbench.tasks import RULES

CLASSES = ["Number of something", "Number", "Food"]
GOLD = {"classification": "Number of something", "integer_share": "Paragraph 7", "code_similarity": "    return left"}


def row(name: str, **changes: Any) -> dict[str, Any]:
    """A row as the original's files hold it; its gold answer suits the task's score."""
    gold = GOLD.get(RULES[name].metric, "the blue cat sat on a mat")
    return {
        "input": "Where is it? {brackets}",
        "context": "A context with {context} in brackets,\u2028 and many words. " * 3,
        "answers": [gold, gold[::-1] if RULES[name].metric in ("f1", "rouge_l") else gold],
        "length": 3999,
        "dataset": name,
        "language": "en",
        "all_classes": CLASSES if RULES[name].metric == "classification" else None,
        "_id": f"{name}-0",
    } | changes


@pytest.fixture(scope="session")
def new_row() -> Callable[..., dict[str, Any]]:
    return row


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The original's data folder with three rows of every task, one in each of LongBench-E's buckets."""
    folder = tmp_path / "LongBench" / "data"
    folder.mkdir(parents=True)
    for name, rules in RULES.items():
        rows = [row(name, length=length, _id=f"{name}-{length}") for length in (3999, 4000, 8000)]
        text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in rows)
        for ending in ("", "_e") if rules.extended else ("",):
            (folder / f"{name}{ending}.jsonl").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture
def one_row() -> Callable[..., Row]:
    """`one_row(name, **changes)`: the row as it is read."""

    def make(name: str, **changes: Any) -> Row:
        values = row(name, **changes)
        return Row(
            values["_id"],
            values["input"],
            values["context"],
            tuple(values["answers"]),
            values["length"],
            tuple(values["all_classes"] or ()),
        )

    return make
