"""Whole runs that are looked at: what is found, when, and that it changes nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lm.run_file import RunFile, load_run_file
from lm.train.log import read_metrics
from lm.train.loop import train
from lm.train.observe.profile import StepProfiler, spans
from lm.train.observe.recall import CUE, NEEDLE, probe

MakeRun = Callable[..., RunFile]
SAME = ("loss", "grad_norm", "validation_loss")


def records_of(run: RunFile) -> list[dict[str, Any]]:
    train(run)
    return read_metrics(run.train.output_dir / "metrics.jsonl")


def test_a_run_that_is_looked_at_is_the_same_run(make_run: MakeRun, tmp_path: Path) -> None:
    settings = ("train.steps=6", "data.sequence_length=128", "train.micro_batch_size=1", "train.checkpoint_every=null")
    seen = records_of(make_run(*settings, "observe.every=4", "observe.recall_every=3", "train.profile=[2,3,5]"))
    off = ("observe.every=null", "observe.recall_every=null", f"train.output_dir={tmp_path / 'unseen'}")
    unseen = records_of(make_run(*settings, *off))
    for key in SAME:
        assert [record.get(key) for record in seen] == [record.get(key) for record in unseen]

    def steps_with(prefix: str, records: list[dict[str, Any]] = seen) -> list[int]:
        return [record["step"] for record in records if any(key.startswith(prefix) for key in record)]

    assert steps_with("layers/") == steps_with("position_loss/") == [1, 4, 6]
    assert steps_with("recall/") == [3, 6]
    assert not any(steps_with(prefix, unseen) for prefix in ("layers/", "position_loss/", "recall/"))
    assert {key for key in seen[2] if key.startswith("recall/")} >= {"recall/128", "recall/256/nll", "recall/512/nll"}
    check_traces(tmp_path / "out" / "profile")


def check_traces(folder: Path) -> None:
    names = sorted(path.name for path in folder.iterdir())
    assert [name for name in names if name.endswith(".gz")] == [
        "steps-000002-000003-rank-00000.json.gz",
        "steps-000005-000005-rank-00000.json.gz",
    ]
    events = json.loads(gzip.decompress((folder / "steps-000002-000003-rank-00000.json.gz").read_bytes()))
    said = {event.get("name") for event in events["traceEvents"]}
    assert {"step 2", "step 3", "aten::mm"} <= said
    assert "step 5" not in said
    assert "aten::" in (folder / "steps-000005-000005-rank-00000.txt").read_text()


def test_a_span_that_is_left_before_its_end_is_written(tmp_path: Path) -> None:
    profiler = StepProfiler(tmp_path, (2, 3, 4), rank=0)
    for step in (1, 2, 3):
        with profiler.step(step):
            torch.ones(2).sum()
    profiler.close()
    profiler.close()
    written = sorted(path.name for path in (tmp_path / "profile").iterdir())
    assert written == ["steps-000002-000003-rank-00000.json.gz", "steps-000002-000003-rank-00000.txt"]


@pytest.mark.parametrize(("steps", "expected"), [((), []), ((5,), [(5, 5)]), ((4, 2, 3, 9, 3), [(2, 4), (9, 9)])])
def test_steps_that_follow_each_other_are_one_trace(steps: tuple[int, ...], expected: list[tuple[int, int]]) -> None:
    assert spans(steps) == expected


@pytest.mark.parametrize("depth", [0.0, 0.3, 1.0])
def test_a_probe_can_be_answered_by_copying_and_by_nothing_else(depth: float) -> None:
    text = np.random.default_rng(0).integers(0, 1000, 400)
    asked = probe(text, depth, seed=7)
    tokens, targets = asked.tokens, asked.targets
    (places,) = torch.nonzero(targets != -100, as_tuple=True)
    assert len(places) == NEEDLE - CUE
    assert list(asked.lengths) == [400]
    # Whoever looks for the last CUE tokens further up, and says what came behind them, is right everywhere.
    for place in places.tolist():
        context = tokens[place - CUE + 1 : place + 1]
        matches = [end for end in range(CUE, place) if torch.equal(tokens[end - CUE : end], context)]
        assert [int(tokens[end]) for end in matches] == [int(targets[place])]
    assert not np.array_equal(probe(text, depth, seed=8).tokens, tokens)


def test_probes_of_a_short_run_are_left_out_where_they_do_not_fit(make_run: MakeRun) -> None:
    records = records_of(make_run("train.steps=1"))  # rows of 32: only four of them hold a needle twice
    assert {key for key in records[0] if key.startswith("recall/")} == {"recall/128", "recall/128/nll"}


def test_a_switch_that_is_no_step_is_refused(run_path: Path) -> None:
    with pytest.raises(Exception, match=r"observe\.every"):
        load_run_file(run_path, ["observe.every=0"])
