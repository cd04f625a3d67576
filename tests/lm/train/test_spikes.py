"""Injected faults of the numbers, in whole runs: a batch that is not finite, a strange document, a wild step."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kernels.linear_cross_entropy import CrossEntropy
from lm.data.prepare import prepare
from lm.errors import UserError
from lm.run_file import RunFile
from lm.train import engine, manifest
from lm.train.distributed import World
from lm.train.engine import Engine, StepResult
from lm.train.log import RunLog, read_metrics
from lm.train.loop import train
from lm.train.rows_read import STRIDE
from lm.train.sharing import MicroBatch
from lm.train.spikes import Spikes

MakeRun = Callable[..., RunFile]
Records = list[dict[str, Any]]
EXACT = ("step", "loss", "grad_norm", "tokens", "skipped", "spikes", "guard", "batch_hash")
OVERRIDES = ("train.steps=40", "data.validation.fraction=0", "train.sample_tokens=0")
STRANGE = "~"


def exact(folder: Path) -> Records:
    return [{key: record.get(key) for key in EXACT} for record in read_metrics(folder / "metrics.jsonl")]


def decisions(folder: Path) -> Records:
    return [json.loads(line) for line in (folder / "guard.jsonl").read_text().splitlines()]


def guard(action: str, **options: Any) -> str:
    values = {"action": action, "sigma": 6.0, "window": 12, "warmup_steps": 6, **options}
    return "guard={" + ", ".join(f"{key}: {value}" for key, value in values.items()) + "}"


@pytest.fixture
def wild_step(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The 26th step that is made has a learning rate that is fifty times too high; all rates so far."""
    usual, rates = Engine.step, []

    def wild(model: Engine, micro_batches: Any, lr: float, accept: Any) -> StepResult:
        rates.append(lr)
        return usual(model, micro_batches, 50 * lr if len(rates) == 26 else lr, accept)

    monkeypatch.setattr(Engine, "step", wild)
    return rates


def spike_at(step: int, times: int, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The loss that the guard is told of this step is too high the first `times`; the rows of the run, then."""
    usual, spiked = Spikes.accept, []

    def accept(spikes: Spikes, now: int, rows: tuple[int, int]) -> Callable[[float, float], bool]:
        judge = usual(spikes, now, rows)
        if now != step or len(spiked) == times:
            return judge
        spiked.append(spikes.span(rows))
        return lambda loss, grad_norm: judge(100 * loss, grad_norm)

    monkeypatch.setattr(Spikes, "accept", accept)
    return spiked


def test_a_batch_that_is_not_finite_is_left_out_and_counted(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, calls = engine.forward_own, []

    def poisoned(model: Any, batch: MicroBatch, world: World) -> CrossEntropy:
        out = forward(model, batch, world)
        calls.append(batch)
        return out._replace(loss=out.loss * math.nan) if len(calls) == 7 else out  # a forward of step 4

    monkeypatch.setattr(engine, "forward_own", poisoned)
    train(make_run(*OVERRIDES, "train.steps=8"))
    records = exact(tmp_path / "out")
    assert [record["skipped"] for record in records] == [0, 0, 0, 1, 1, 1, 1, 1]
    assert math.isfinite(records[-1]["loss"])


def test_a_strange_document_is_named_and_its_step_left_out(make_run: MakeRun, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(make_run().data.sources[0].path, corpus)
    (corpus / "strange.txt").write_text(STRANGE * 100)
    run = make_run(*OVERRIDES, f"data.sources.0.path={corpus}", guard("skip", retries=4))
    train(run)
    prepared = prepare(run.data)
    (token,) = prepared.tokenizer.encode(STRANGE)
    found = decisions(tmp_path / "out")
    assert found
    for decision in found:
        batch = prepared.train.rows(range(*decision["rows"]))
        documents = {
            document
            for part, document in zip(batch.tokens.flatten().split(batch.lengths), batch.document_ids, strict=True)
            if (part == token).float().mean() > 0.9
        }
        assert documents, "the step has nothing strange in it"
        assert documents <= set(decision["documents"])
        assert decision["action"] == "skip"
    records = exact(tmp_path / "out")
    assert records[-1]["spikes"] == len(found)
    assert [r["step"] for r in records if r["guard"]] == [decision["step"] for decision in found]


def test_a_wild_step_is_gone_back_from_and_its_rows_are_stepped_over(
    make_run: MakeRun, tmp_path: Path, wild_step: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = (*OVERRIDES, "train.keep_checkpoints=4", guard("rewind", sigma=9.0))
    train(make_run(*settings))
    (decision,) = decisions(tmp_path / "out")
    assert (decision["action"], decision["checkpoint"]) == ("rewind", 16)
    assert decision["stepped_over"] == [16 * 8, decision["step"] * 8]
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"stepping over rows 128 to {decision['step'] * 8 - 1}" in said
    records = exact(tmp_path / "out")
    steps = [record["step"] for record in records]
    assert steps == [*range(1, 17), 16, *range(17, 41)]
    hashes = [record["batch_hash"] for record in records if record["batch_hash"]]
    assert len(set(hashes)) == 40
    assert max(record["loss"] for record in records[17:]) < records[15]["loss"] + 0.5
    kept = [manifest.step_of(folder) for folder in manifest.checkpoints(tmp_path / "out" / "checkpoints")]
    assert kept == [40, 36, 32, 28, 16]  # that before the spike stays


def test_what_was_decided_holds_after_a_kill(
    make_run: MakeRun, tmp_path: Path, wild_step: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*OVERRIDES, guard("rewind", sigma=9.0))
    train(make_run(*settings, f"train.output_dir={tmp_path / 'whole'}"))
    wild_step.clear()
    write = RunLog.write

    def killed(log: RunLog, record: dict[str, Any]) -> None:
        write(log, record)
        if record.get("guard") == "rewind":
            raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        train(make_run(*settings))
    monkeypatch.setattr(RunLog, "write", write)
    assert len(wild_step) == 27
    train(make_run(*settings))  # the learning rate is wild no more, and the rows are stepped over all the same
    assert exact(tmp_path / "out") == exact(tmp_path / "whole")


def test_a_rewind_across_the_border_of_a_stage_reads_the_stage_before_again(
    make_run: MakeRun, tmp_path: Path, wild_step: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stepped over are the rows of the stage with the spike, and none of those that were read before it began."""
    write, written = RunLog.write, []

    def noted(log: RunLog, record: dict[str, Any]) -> None:
        written.append(dict(record))
        write(log, record)

    monkeypatch.setattr(RunLog, "write", noted)
    border, rows = 21, 4  # of 64 tokens in a step of the second stage
    stages = f"train.stages=[{{steps: {border}}}, {{sequence_length: 64, micro_batch_size: 2}}]"
    train(make_run(*OVERRIDES, stages, "train.keep_checkpoints=4", guard("rewind", sigma=9.0)))
    (decision,) = decisions(tmp_path / "out")
    spike, back_to = decision["step"], decision["checkpoint"]
    assert back_to < border < spike
    first = STRIDE
    assert decision["stepped_over"] == [first, first + (spike - border) * rows]
    records = exact(tmp_path / "out")
    assert [record["step"] for record in records] == [*range(1, back_to + 1), back_to, *range(back_to + 1, 41)]
    rewound = next(index for index, record in enumerate(written) if record.get("guard") == "rewind")
    before = {record["step"]: record["batch_hash"] for record in written[:rewound]}
    again = {record["step"]: record["batch_hash"] for record in written[rewound + 1 :]}
    for step in range(back_to + 1, border + 1):
        assert again[step] == before[step]
    assert not {again[step] for step in range(border + 1, 41)} & set(before.values())


def test_a_step_that_spikes_with_whatever_rows_ends_the_run(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at the border of a stage of other text: each time the run goes back as far as it says, and counts."""
    spiked = spike_at(27, 4, monkeypatch)
    settings = (*OVERRIDES, "train.keep_checkpoints=4", guard("rewind", sigma=9.0, retries=2))
    with pytest.raises(UserError, match="step 27 spikes after 2 rewinds"):
        train(make_run(*settings))
    assert spiked == [(208, 216), (296, 304), (384, 392)]
    found = decisions(tmp_path / "out")
    assert [decision["checkpoint"] for decision in found] == [16, 16]
    assert [decision["stepped_over"] for decision in found] == [[128, 216], [216, 304]]
    records = exact(tmp_path / "out")
    assert [record["step"] for record in records] == [*range(1, 17), 16, 16, *range(17, 27)]
    assert records[-1]["spikes"] == 2
    train(make_run(*settings, "guard.retries=3"))  # from step 24, which knows of both: only the fourth is new
    assert [decision["rows"] for decision in decisions(tmp_path / "out")] == [list(rows) for rows in spiked[:2]] + [
        [384, 392]
    ]


def test_a_rewind_that_the_data_has_no_rows_for_is_a_step_left_out(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spike_at(27, 1, monkeypatch)
    train(make_run(*OVERRIDES, "train.keep_checkpoints=4", enough_for(make_run, 325), guard("rewind", sigma=9.0)))
    (decision,) = decisions(tmp_path / "out")
    assert (decision["action"], decision["checkpoint"]) == ("skip", None)
    assert "left out, since max_epochs leave no rows" in capsys.readouterr().out.replace("\n", " ")
    assert [record["step"] for record in exact(tmp_path / "out")] == [*range(1, 41)]


def test_a_longer_run_than_rewinds_left_rows_for_is_refused_when_it_starts(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spike_at(20, 1, monkeypatch)
    schedule = "optimizer.schedule={kind: wsd, warmup_steps: 8}"  # whatever the run's length
    settings = (*OVERRIDES, schedule, "train.keep_checkpoints=4", enough_for(make_run, 325), guard("rewind", sigma=9.0))
    train(make_run(*settings, "train.steps=24"))
    (decision,) = decisions(tmp_path / "out")
    first, end = decision["stepped_over"]
    possible = (325 - (end - first)) // 8
    before = exact(tmp_path / "out")
    with pytest.raises(UserError, match=f"Set train.steps to {possible} at most"):
        train(make_run(*settings))
    assert exact(tmp_path / "out") == before
    train(make_run(*settings, f"train.steps={possible}"))
    assert exact(tmp_path / "out")[-1]["step"] == possible


def enough_for(make_run: MakeRun, rows: int) -> str:
    """The max_epochs with which the data has so many rows."""
    (epoch,) = prepare(make_run(*OVERRIDES).data).train.order.rows
    return f"data.sources.0.max_epochs={(rows + 0.5) / epoch}"
