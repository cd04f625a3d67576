"""What is measured by length is read from held-out texts; answers are read with their questions."""

from __future__ import annotations

import json
from pathlib import Path

from eval.length_figures import Bench
from lm.data.options import DataOptions
from lm.data.prepare import prepare
from lm.extend.measure_options import MeasureOptions
from lm.hf.tokenizer import fast_tokenizer


def test_samples_are_read_whole(tmp_path: Path) -> None:
    records = [{"prompt": f"question {number} ", "answer": f"{number}th answer"} for number in range(100, 140)]
    (tmp_path / "samples.json").write_text(json.dumps(records))
    (tmp_path / "text.txt").write_text("some words\n" * 200)

    def read(*sources: dict[str, str]) -> tuple[Bench, str]:
        options = {"sources": sources, "cache_dir": tmp_path / "cache", "validation": {"fraction": 0.5}}
        prepared = prepare(
            DataOptions.model_validate({"tokenizer": {"kind": "bytes"}, "sequence_length": 512, **options})
        )
        measured = MeasureOptions(lengths=(256,), passkey=None)
        bench = Bench(measured, 128, 256, prepared, fast_tokenizer(prepared.tokenizer, 256))
        return bench, prepared.tokenizer.decode(bench._stream.ids.tolist())

    answers, text = {"kind": "sft", "path": str(tmp_path / "samples.json")}, {"path": str(tmp_path / "text.txt")}
    bench, samples = read(answers)
    held_out = [record for record in records if record["answer"] in samples]
    assert 0 < len(held_out) < len(records)
    for record in held_out:
        assert samples.partition(record["prompt"])[2].startswith(f"[/INST]{record['answer']}")
    assert bench.wanted
    both, joined = read(answers, text)
    assert joined == samples + read(text)[1]
    assert both.settings["text"] != bench.settings["text"]
