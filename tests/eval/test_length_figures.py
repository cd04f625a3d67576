"""What is measured by length is read from held-out texts; answers without their questions are none."""

from __future__ import annotations

import json
from pathlib import Path

from eval.length_figures import Bench
from lm.data.options import DataOptions
from lm.data.prepare import prepare
from lm.extend.measure_options import MeasureOptions
from lm.hf.tokenizer import fast_tokenizer


def test_answers_are_no_text(tmp_path: Path) -> None:
    samples, text = tmp_path / "samples.json", tmp_path / "text.txt"
    samples.write_text(json.dumps([{"prompt": f"{number}", "answer": "y" * 400} for number in range(40)]))
    text.write_text("some words\n" * 200)

    def wanted(*sources: dict[str, str]) -> list[tuple[str, int]]:
        options = {"sources": sources, "cache_dir": tmp_path / "cache", "validation": {"fraction": 0.5}}
        prepared = prepare(
            DataOptions.model_validate({"tokenizer": {"kind": "bytes"}, "sequence_length": 512, **options})
        )
        measured = MeasureOptions(lengths=(256,), passkey=None)
        bench = Bench(measured, 128, 256, prepared, fast_tokenizer(prepared.tokenizer, 256))
        return [(kind, length) for kind, length, _ in bench.wanted]

    answers = {"kind": "sft", "path": str(samples)}
    assert wanted(answers) == []
    assert wanted(answers, {"path": str(text)}) == wanted({"path": str(text)}) != []
