"""What each step is, and what becomes of a run whose rows change on the way."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.errors import UserError
from lm.run_file import RunFile, load_run_file
from lm.train import manifest
from lm.train.data_phase import require_whole_rows
from lm.train.folder import RunFolder
from lm.train.log import read_metrics
from lm.train.loop import train
from lm.train.optimizer_options import OptimizerOptions
from lm.train.options import TrainOptions, check_run
from lm.train.schedule import learning_rate
from lm.train.timeline import Timeline

MakeRun = Callable[..., RunFile]
LENGTH, BATCH = 8, 64
CLOCK = ("tokens_per_second", "mfu", "step_seconds", "data_seconds", "peak_memory")
GROWING = [{"steps": 0.5, "sequence_length": 16, "lr": 0.02}, {"global_batch_tokens": 512, "weights": [3.0]}]


def timeline(steps: int, *stages: dict[str, Any], warmup: dict[str, Any] | None = None) -> Timeline:
    """The steps of a run in rows of LENGTH and batches of BATCH, that is checked as a run file is."""
    train = TrainOptions.model_validate(
        {
            "output_dir": "unused",
            "steps": steps,
            "global_batch_tokens": BATCH,
            "micro_batch_size": 2,
            "stages": stages,
            "batch_warmup": warmup,
        }
    )
    optimizer = OptimizerOptions.model_validate({"lr": 1.0, "schedule": {"kind": "wsd", "decay_steps": 0.5}})
    check_run(train, optimizer, LENGTH, sources=2)
    return Timeline(train, optimizer, LENGTH)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    """Runs of up to four stages, with a growing batch in front."""
    lengths = st.sampled_from([None, 4, 16])
    counts = draw(st.lists(st.integers(1, 12), min_size=1, max_size=4))
    stages = [
        {
            "steps": count,
            "sequence_length": draw(lengths),
            "global_batch_tokens": draw(st.sampled_from([None, 32, 128])),
            "weights": draw(st.sampled_from([None, [1, 2], [0, 1]])),
        }
        for count in counts
    ]
    warmup = (
        {"tokens": 16, "steps": draw(st.integers(1, counts[0] - 1))} if counts[0] > 1 and draw(st.booleans()) else None
    )
    return timeline(sum(counts), *stages, warmup=warmup)


@given(timelines())
@settings(deadline=None, max_examples=50)
def test_every_source_is_read_row_by_row_without_a_gap(found: Timeline) -> None:
    """Whatever the stages, the rows of a source are read from 0 on, each once, in equal shares of whole rows."""
    position: dict[object, int] = {}
    tokens = 0
    for number in range(found.steps):
        step = found[number]
        assert step.first_row == position.get(step.source, 0)
        position[step.source] = step.first_row + step.rows
        tokens += step.tokens
        assert step.rows >= 1
    assert tokens == found.tokens
    assert found.read_before(found.steps) == found.read_before(10**9)


@given(timelines(), timelines())
@settings(deadline=None, max_examples=100)
def test_what_was_read_is_told_alike_where_it_is_alike(one: Timeline, other: Timeline) -> None:
    """Wherever a run stands: its words are another run's exactly where all its steps read the other's rows."""
    for step in range(min(one.steps, other.steps) + 1):
        rows = [
            [(s.source, s.first_row, s.rows) for s in map(found.__getitem__, range(step))] for found in (one, other)
        ]
        assert (one.read_before(step) == other.read_before(step)) == (rows[0] == rows[1])


def test_stages_that_read_the_same_rows_are_one_to_a_run_before_them() -> None:
    plain, staged, larger = (
        timeline(10),
        timeline(10, {"steps": 8}, {"lr": 0.1}),
        timeline(10, {"steps": 8}, {"lr": 0.1, "global_batch_tokens": 128}),
    )
    for step in range(11):
        assert plain.read_before(step) == staged.read_before(step)
        assert (plain.read_before(step) == larger.read_before(step)) == (step <= 8)


def test_the_longest_forward_is_what_one_reader_reads_at_once() -> None:
    found = timeline(
        10,
        {"steps": 5, "sequence_length": 16},
        {"sequence_length": 16, "micro_batch_size": 4},
        warmup={"tokens": 16, "steps": 4},
    )
    assert found.longest_forward(1) == [16] * 4
    assert found.longest_forward(2) == [16] * 2
    assert found.longest_forward(4) == [16]


@given(timelines())
@settings(deadline=None, max_examples=50)
def test_a_growing_batch_is_a_multiple_of_its_first_and_ends_full(found: Timeline) -> None:
    batches = [found[number].tokens for number in range(found.steps) if found[number].stage == 0]
    assert batches == sorted(batches)
    assert all(batch % batches[0] == 0 for batch in batches)
    assert max(batches) in (32, 64, 128)


def test_stages_change_rows_batch_mix_and_rate() -> None:
    found = timeline(
        10,
        {"steps": 0.4},
        {"steps": 4, "sequence_length": 16, "global_batch_tokens": 128, "weights": [1, 0], "lr": 0.5},
        {"schedule": {"kind": "linear"}},
    )
    steps = [found[number] for number in range(10)]
    assert [step.stage for step in steps] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2]
    assert [step.source.sequence_length for step in steps[3:9:4]] == [8, 16]
    assert [step.rows for step in steps] == [8] * 10
    assert [step.micro_batch_size for step in steps] == [2] * 4 + [1] * 4 + [2] * 2
    assert steps[4].source.weights == (1.0, 0.0)
    schedule = OptimizerOptions.model_validate({"lr": 1.0, "schedule": {"kind": "wsd", "decay_steps": 0.5}}).schedule
    assert [step.lr for step in steps[:4]] == [1.0] * 4
    assert [step.lr for step in steps[4:8]] == [learning_rate(0.5, schedule, number, 10) for number in range(4, 8)]
    assert [step.lr for step in steps[8:]] == [1.0, 0.5]


def test_a_stage_of_the_same_rows_goes_on_where_the_one_before_stood() -> None:
    found = timeline(6, {"steps": 3}, {"lr": 0.1})
    assert [found[number].first_row for number in range(6)] == [0, 8, 16, 24, 32, 40]
    assert len({found[number].source for number in range(6)}) == 1


def test_a_batch_grows_in_equal_increments() -> None:
    found = timeline(8, warmup={"tokens": 16, "steps": 6})
    assert [found[number].tokens for number in range(8)] == [16, 16, 32, 32, 48, 48, 64, 64]


@pytest.mark.parametrize(
    ("stages", "warmup", "message"),
    [
        ([{"steps": 4}], None, r"train.stages.0.steps is 4.0, but 10 of train.steps 10 are left for it, the last"),
        ([{"steps": 10}, {"steps": 1}], None, "train.stages.1.steps is 1.0, but 0 of train.steps 10 are left"),
        ([{}, {"steps": 1}], None, "train.stages.0.steps is missing"),
        ([{"sequence_length": 48}], None, "train.global_batch_tokens is 64, .* train.stages.0.sequence_length 48"),
        ([{"global_batch_tokens": 12}], None, "train.stages.0.global_batch_tokens is 12, .* data.sequence_length 8"),
        ([{"weights": [1.0]}], None, "train.stages.0.weights are 1, but data.sources has 2"),
        ([{"schedule": {"kind": "wsd", "decay_steps": 99}}], None, "train.stages.0.schedule's"),
        ([], {"tokens": 12, "steps": 2}, "train.batch_warmup.tokens is 12, which is not a multiple"),
        ([], {"tokens": 40, "steps": 2}, "train.batch_warmup.tokens is 40, of which the full batch of 64"),
        ([{"steps": 3}, {}], {"tokens": 16, "steps": 4}, "train.batch_warmup.steps is 4.0, beyond the 3 steps"),
    ],
)
def test_stages_that_cannot_be_are_refused(stages: list[Any], warmup: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        timeline(10, *stages, warmup=warmup)


def records(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what depends on the clock, and without what is looked at now and then."""
    keys = ("step", "loss", "learning_rate", "grad_norm", "tokens", "targets", "stage", "sequence_length")
    return [{key: record[key] for key in keys} for record in read_metrics(folder / "metrics.jsonl")]


@pytest.fixture(scope="module")
def grown(run_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose rows grow from 16 to 32 tokens after half of it, and whose batch grows at first."""
    output = tmp_path_factory.mktemp("grown") / "out"
    train(load_run_file(run_path, [f"train.output_dir={output}", *overrides()]))
    return output


def overrides() -> list[str]:
    return [
        f"train.stages={json.dumps(GROWING)}",
        'train.batch_warmup={"tokens": 64, "steps": 4}',
        "train.keep_checkpoints=10",
    ]


def test_rows_and_batches_grow(grown: Path) -> None:
    found = records(grown)
    assert [record["sequence_length"] for record in found] == [16] * 10 + [32] * 10
    batches = [64, 64, 128, 192, *[256] * 6, *[512] * 10]
    assert [record["tokens"] for record in found] == [sum(batches[: number + 1]) for number in range(20)]
    assert found[5]["learning_rate"] == 0.02
    assert json.loads((grown / "model" / "config.json").read_text())["max_position_embeddings"] == 32


@pytest.mark.parametrize("step", [4, 8, 12])
def test_stopping_within_any_stage_changes_nothing(grown: Path, make_run: MakeRun, tmp_path: Path, step: int) -> None:
    copy = begun_copy(grown, tmp_path / "out", step)
    train(make_run(*overrides()))
    assert records(copy) == records(grown)


def begun_copy(folder: Path, copy: Path, step: int) -> Path:
    """The folder as it was at its checkpoint of `step`."""
    shutil.copytree(folder, copy)
    (copy / "complete.json").unlink()
    for kept in manifest.checkpoints(copy / "checkpoints"):
        if manifest.step_of(kept) > step:
            shutil.rmtree(kept)
    return copy


def test_what_was_read_cannot_be_changed_and_what_comes_can(grown: Path, make_run: MakeRun, tmp_path: Path) -> None:
    begun_copy(grown, tmp_path / "out", 12)
    other = [*overrides(), "train.stages.0.steps=0.45"]
    with pytest.raises(UserError, match=r"what the first 12 steps read.* was .*16 tokens.* and is now"):
        train(make_run(*other))
    added = [{**GROWING[0], "steps": 10}, {**GROWING[1], "steps": 4}, {"steps": 1, "sequence_length": 16}]
    train(make_run(f"train.stages={json.dumps(added)}", *overrides()[1:], "train.steps=15"))
    assert [record["stage"] for record in records(tmp_path / "out")][10:] == [1, 1, 1, 1, 2]


def test_a_stage_of_longer_rows_joins_a_run_that_is_under_way(make_run: MakeRun, tmp_path: Path) -> None:
    """As if it had been there from the beginning, in the result as in the losses."""
    schedule = "optimizer.schedule={kind: constant, warmup_steps: 2}"
    longer = ["train.steps=9", "train.stages=[{steps: 6}, {sequence_length: 64, lr: 5.0e-3, micro_batch_size: 2}]"]
    at_once, folder = tmp_path / "at once", tmp_path / "out"
    train(make_run(schedule, *longer, f"train.output_dir={at_once}"))
    train(make_run(schedule, "train.steps=6"))
    train(make_run(schedule, *longer))
    assert records(folder) == records(at_once)
    assert [record["sequence_length"] for record in records(folder)] == [32] * 6 + [64] * 3
    for result in (folder, at_once):
        assert json.loads((result / "model" / "config.json").read_text())["max_position_embeddings"] == 64
        assert json.loads((result / "model" / "tokenizer_config.json").read_text())["model_max_length"] == 64
    assert load_run_file(folder / "run.yaml").model.max_position_embeddings == 64


def test_a_context_that_was_asked_for_is_kept(make_run: MakeRun, tmp_path: Path) -> None:
    folder, longest = RunFolder(tmp_path / "out"), "model.max_position_embeddings={}".format
    manifest.commit(manifest.begin(folder.checkpoints, 5), {})
    folder.save_config(make_run(longest(128)))
    stages = "train.stages=[{steps: 10}, {sequence_length: 64}]"
    folder.require_same(make_run(stages, longest(128)))
    for changed in ([], [stages], [stages, longest(256)]):
        with pytest.raises(UserError, match=r"model.max_position_embeddings was 128 and is now"):
            folder.require_same(make_run(*changed))


def test_ranks_that_cannot_share_a_batch_on_the_way_are_refused(make_run: MakeRun) -> None:
    run = make_run(*overrides())
    require_whole_rows(run, 4)
    with pytest.raises(UserError, match=r"train.batch_warmup.tokens: 64 tokens are 4 rows of 16, which 8 ranks"):
        require_whole_rows(run, 8)
    stages = json.dumps([GROWING[0], {"global_batch_tokens": 160}])
    with pytest.raises(UserError, match=r"train.stages.1.global_batch_tokens: 160 tokens are 5 rows of 32"):
        require_whole_rows(make_run(f"train.stages={stages}"), 4)


def test_positions_must_reach_as_far_as_the_longest_stage(make_run: MakeRun) -> None:
    stages = json.dumps([{"steps": 0.5}, {"sequence_length": 64}])
    assert make_run(f"train.stages={stages}").model.max_position_embeddings == 64
    with pytest.raises(UserError, match=r"is 32, less than train.stages.1.sequence_length 64"):
        make_run(f"train.stages={stages}", "model.max_position_embeddings=32")


def test_a_run_goes_on_into_shards_that_were_made_meanwhile(run_path: Path, make_run: MakeRun, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(run_path.parent / "corpus", corpus)
    own = [f"data.sources.0.path={corpus}", "data.shard_bytes=600", "train.steps=12"]
    growing = 'train.stages=[{"steps": 8}, {"shards": "all"}]'
    train(make_run(*own, "data.shards=2", growing, f"train.output_dir={tmp_path / 'at once'}"))
    at_once = records(tmp_path / "at once")
    train(make_run(*own, "data.shards=2", f"train.output_dir={tmp_path / 'narrow'}"))
    assert records(tmp_path / "narrow")[:8] == at_once[:8]
    assert records(tmp_path / "narrow")[8:] != at_once[8:]
    copy = begun_copy(tmp_path / "narrow", tmp_path / "out", 8)
    with pytest.raises(UserError, match=r"data\.shards was 2 and is now 3\n.*train\.stages can read more shards"):
        train(make_run(*own, "data.shards=3"))
    train(make_run(*own, "data.shards=2", growing))
    assert records(copy) == at_once
    (corpus / "9.txt").write_text("another text where only the later steps have read")
    with pytest.raises(UserError, match=r"data\.sources\.0 \(all shards\): the text is not what the run"):
        train(make_run(*own, "data.shards=2", growing, "train.steps=13"))
