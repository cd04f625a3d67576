from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lm.data.prepare import prepare
from lm.model.decoder import LanguageModel
from lm.plan import make_plan
from lm.plan_table import plan_run
from lm.run_file import ExtensionFile, GraftFile, RunFile, load_run_file
from lm.train.flops import StepFlops
from lm.train.log import read_metrics
from lm.train.loop import train

MakeRun = Callable[..., RunFile]
CONFIGS = Path(__file__).parents[3] / "configs"


def test_a_row_of_one_document_costs_what_the_plan_says(make_run: MakeRun) -> None:
    options = make_run().model
    plan = make_plan(options, 32)
    count = StepFlops(LanguageModel(options), plan)
    assert count([[32], [32, 32]]) == pytest.approx(96 * plan.training_flops_per_token)


def test_rows_of_short_documents_cost_what_a_plan_for_short_rows_says(make_run: MakeRun) -> None:
    options = make_run("model.layers=rat local ls s2 rat").model
    count = StepFlops(LanguageModel(options), make_plan(options, 32))
    expected = 64 * make_plan(options, 8).training_flops_per_token
    assert count([[8] * 4, [8] * 4]) == pytest.approx(expected)
    assert expected < 64 * make_plan(options, 32).training_flops_per_token


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_rows_of_every_config_cost_what_its_plan_says(path: Path, smollm2: Path) -> None:
    """MFU's FLOPs and the plan's: of a row of one document, and of one that short documents fill."""
    based = "\nbase:" in path.read_text()
    run = load_run_file(path, [f"base.path={smollm2}", "data.tokenizer={kind: bytes}"] if based else [])
    plan, _ = plan_run(run, world_size=1)
    length = plan.sequence_length
    with torch.device("meta"):
        model = torch.nn.Module() if based else LanguageModel(run.model)
    count = StepFlops(model, plan, run.trainee.mixers if isinstance(run, ExtensionFile) else ())
    assert count([[length], [length, length]]) == pytest.approx(3 * length * plan.training_flops_per_token, rel=1e-9)
    if not isinstance(run, GraftFile):
        short = run.trainee.plan(length // 4, torch.float32)
        assert count([[length // 4] * 4]) == pytest.approx(length * short.training_flops_per_token, rel=1e-9)
        assert short.training_flops_per_token != plan.training_flops_per_token


def pairs_of_all_layers(length: int) -> int:
    """Query-key pairs of a document in the four layers of `RUN_FILE`, four heads each, counted one by one."""
    rat = sum(4 * (p // 4 + 1) for p in range(length))
    local = sum(4 * min(p + 1, 8) for p in range(length))
    ls = sum(2 * min(p + 1, 4) + 2 * (p + 1) for p in range(length))
    groups = [[(p + shift) // 8 if length > 8 else 0 for p in range(length)] for shift in (0, 4)]
    s2 = sum(2 * group[: p + 1].count(group[p]) for group in groups for p in range(length))
    return rat + local + ls + s2


def test_the_mfu_that_a_run_prints_is_the_one_computed_by_hand(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm.train.peak.device_peak", lambda device, dtype: 3e9)
    run = make_run("train.steps=3")
    hidden, head_dim, vocab = 16, 4, run.model.vocab_size
    intermediate = run.model.intermediate_size
    rat = 4 * hidden**2 + 2 * 2 * head_dim * hidden  # values, both gates, output; two shared queries and keys
    matrices = rat + 3 * 4 * hidden**2 + 4 * 3 * hidden * intermediate + vocab * hidden
    train(run)
    records = read_metrics(run.train.output_dir / "metrics.jsonl")
    batches = prepare(run.data).train
    for step, record in enumerate(records):
        lengths = batches.rows(range(8 * step, 8 * step + 8)).lengths
        forward = 2 * matrices * sum(lengths) + 4 * head_dim * sum(map(pairs_of_all_layers, lengths))
        assert record["mfu"] == pytest.approx(3 * forward / record["step_seconds"] / 3e9, rel=1e-9)
