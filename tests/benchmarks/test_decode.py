"""The decoding benchmark measures what it says: full caches of the stated size, and the model's own steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.decode import HYBRID, braid, fill_braid, fill_llama
from benchmarks.peer import llama
from lm.cli import main


def test_a_filled_cache_is_one_after_as_many_tokens() -> None:
    model = braid(40, **HYBRID)
    prefilled = model(torch.arange(40)[None]).past_key_values
    filled = fill_braid(model, 40)
    assert filled.used_bytes == prefilled.used_bytes
    assert filled.get_seq_length() == prefilled.get_seq_length() == 40
    assert fill_llama(llama(2, 64, 80, use_cache=True), 40).get_seq_length() == 40


def test_it_prints_both_speeds_and_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "decode", "--quick", "--lengths", "64", "--json", str(tmp_path / "f.json")]) == 0
    figures = json.loads((tmp_path / "f.json").read_text())["decode"]
    assert figures["ratio"] == pytest.approx(figures["braid_tokens_per_second"] / figures["llama_tokens_per_second"])
    pairs, width = 4, 512
    finals = 2 * width * (64 // 16) * 4 + 2 * width * 4  # and the running state
    assert figures["hybrid_bytes"] == pairs * (finals + 2 * width * 64 * 4)
    assert figures["all_global_bytes"] == 2 * pairs * 2 * width * 64 * 4
    printed = capsys.readouterr().out
    assert f"{figures['ratio']:9.2f}" in printed
