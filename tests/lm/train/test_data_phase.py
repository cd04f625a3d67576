"""What is said of the data in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lm.data.options import DataOptions
from lm.data.prepare import prepare
from lm.errors import UserError
from lm.run_file import RunFile
from lm.train.data_phase import require_rows, summary


def options_for(path: Path, fraction: float = 0.2, **source: object) -> DataOptions:
    return DataOptions.model_validate(
        {
            "tokenizer": {"kind": "bytes"},
            "sources": [{"path": str(path), **source}],
            "sequence_length": 64,
            "validation": {"fraction": fraction},
            "cache_dir": path.parent / "cache",
        }
    )


def test_texts_and_samples_are_summed_up(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("line\n" * 100)
    said = summary(prepare(options_for(tmp_path / "text.txt")), 4000)
    assert said.endswith("; the run reads 4K tokens, 9.95 epochs"), said
    assert said.startswith("1 document, 402 tokens; held out 1 document, 102 tokens (few: "), said
    records = [{"prompt": "x" * (20 * number), "answer": "y" * (7 * number + 1)} for number in range(10)]
    (tmp_path / "samples.json").write_text(json.dumps(records))
    prepared = prepare(options_for(tmp_path / "samples.json", 0, kind="sft"))
    said = summary(prepared, 4000)
    assert f", {prepared.statistics.targets} of them to learn; " in said
    assert "6 prompts cut to a row; 2 samples dropped as longer than a row; held out " in said


def test_a_run_longer_than_capped_sources_is_refused_before_it_begins(make_run: Callable[..., RunFile]) -> None:
    rows = prepare(make_run().data).train.order.rows[0]
    for epochs, enough in ((8 * 20 / rows + 0.1, True), (8 * 20 / rows - 0.1, False)):
        run = make_run(f"data.sources.0.max_epochs={epochs}")
        if enough:
            require_rows(run, prepare(run.data))
        else:
            with pytest.raises(UserError, match=r"max_epochs they give \d+ rows of 32 tokens; the run asks for 160"):
                require_rows(run, prepare(run.data))
