"""Tasks on a model in training: what is read counts as what would be written, on any number of ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.live import Forced, LiveEvaluation, forced, packed
from eval.options import LiveOptions
from eval.tasks import TASKS, Sample, open_haystack
from kernels.linear_cross_entropy import CrossEntropy
from lm.cli import main
from lm.data.tokenizers import BytesTokenizer
from lm.errors import UserError
from lm.run_file import load_run_file
from lm.train import distributed
from lm.train.log import read_metrics
from lm.train.progress import Progress
from lm.train.sharing import MicroBatch

ROOT = Path(__file__).parents[2]
TOKENIZER = BytesTokenizer()
RUN_FILE = """\
model:
  hidden_size: 16
  num_attention_heads: 2
  mixers: {{local: {{kind: attention, window: 8}}}}
  layers: local local
data:
  tokenizer: {{kind: bytes}}
  sources: [{{path: "{corpus}"}}]
  sequence_length: 32
  cache_dir: "{cache}"
train: {{output_dir: "{output}", steps: 4, global_batch_tokens: 128, sample_tokens: 0}}
optimizer: {{lr: 1.0e-2}}
evaluations: {{tasks: [passkey, parity], lengths: [200, 450], samples: 3, every: 2, cache_dir: "{cache}/questions"}}
log: {{wandb: disabled}}
"""


@pytest.fixture
def run_path(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("The pass key is what it is. " * 200)
    path = tmp_path / "run.yaml"
    places = {"corpus": tmp_path / "text.txt", "cache": tmp_path / "cache", "output": tmp_path / "out"}
    path.write_text(RUN_FILE.format(**places))
    return path


class Oracle:
    """Finds the bytes of `known` likely, at 1 nat, and no other."""

    def __init__(self, known: str) -> None:
        self.world = distributed.join()
        self.known = torch.tensor(list(known.encode()))
        self.forwards = 0

    def eval(self) -> None: ...

    def forward(self, batch: MicroBatch) -> CrossEntropy:
        self.forwards += 1
        counted = batch.targets != -100
        nll = torch.where(counted, 1.0, 0.0)
        return CrossEntropy(nll.sum(), nll, counted & torch.isin(batch.targets, self.known))


Live = Callable[..., LiveEvaluation]


@pytest.fixture
def live(tmp_path: Path) -> Live:
    """A prepared evaluation; keywords are options."""

    def make(**more: object) -> LiveEvaluation:
        options = {"tasks": ("passkey", "niah_multivalue"), "lengths": (1200,), "samples": 3, "every": 1}
        hook = LiveEvaluation(LiveOptions.model_validate(options | {"cache_dir": tmp_path} | more), batch_tokens=2500)
        hook.prepare(TOKENIZER, Progress(rank=1))
        return hook

    return make


def test_a_model_that_knows_the_answers_scores_one_and_another_nothing(live: Live) -> None:
    hook = live()
    everything = hook(Oracle("0123456789, "))
    assert everything["eval/samples"] == 6
    for task in ("passkey", "niah_multivalue"):
        assert everything[f"eval/{task}@1200"] == 1.0
        assert everything[f"eval/{task}@1200/nll"] == pytest.approx(1.0)
    assert hook(Oracle("01234 ,"))["eval/niah_multivalue@1200"] < 1
    assert hook(Oracle(""))["eval/passkey@1200"] == 0


def test_time_is_bounded_and_every_task_is_asked_alike(live: Live) -> None:
    oracle = Oracle("")
    found = live(seconds=1e-9, tasks=("passkey", "passkey_longlora"))(oracle)
    assert oracle.forwards == 1
    assert found["eval/samples"] == 2
    assert {"eval/passkey@1200", "eval/passkey_longlora@1200"} < found.keys()


def test_the_answers_stand_behind_the_prompt_as_it_ends() -> None:
    haystack = open_haystack()
    for name, between in (("passkey", None), ("niah_multivalue", ", "), ("vt", " ")):
        (sample,) = TASKS[name].samples(TOKENIZER, 3000, 1, 0, haystack)
        found = forced(sample, TASKS[name], TOKENIZER, 0)
        text = TOKENIZER.decode(found.ids.tolist()[1:])
        answers = sample.answers if between else sample.answers[:1]
        glue = "" if sample.prompt.endswith(" ") else " "
        assert found.ids[0] == TOKENIZER.bos_id
        assert text == sample.prompt + glue + (between or "").join(answers)
        spelled = [TOKENIZER.decode(found.ids[begin:end].tolist()).strip(", ") for begin, end in found.spans]
        assert spelled == list(answers)


class Merging(BytesTokenizer):
    """Joins a space to the byte behind it, so that tokens reach over the border of prompt and answer."""

    def encode(self, text: str) -> list[int]:
        return list(text.replace(" ", "\x01").replace("\x011", "\x02").encode())


def test_a_token_over_the_border_belongs_to_the_answer() -> None:
    sample = Sample("passkey", "x", 9, "key ", ("123",), 3, {})
    found = forced(sample, TASKS["passkey"], Merging(), 0)
    assert found.ids.tolist()[1:] == [*b"key", 2, *b"23"]
    assert list(found.spans) == [(4, 7)]


@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=12),
    tokens=st.integers(1, 60),
)
@settings(deadline=None)
def test_packs_keep_every_sample_and_its_targets(lengths: Sequence[int], tokens: int) -> None:
    samples = [Forced(cell, torch.arange(n) + 100 * cell, [(n - 1, n)]) for cell, n in enumerate(lengths)]
    packs = list(packed(iter(samples), tokens))
    assert [sample for pack in packs for sample in pack.samples] == samples
    for pack in packs:
        assert sum(pack.lengths) == len(pack.tokens) == len(pack.targets)
        assert len(pack.samples) == 1 or sum(len(sample.ids) for sample in pack.samples) <= tokens
        wanted = [int(sample.ids[-1]) for sample in pack.samples]
        assert pack.targets[pack.targets != -100].tolist() == wanted


def test_mistakes_are_named_before_the_run_begins(
    run_path: Path, live: Live, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(run_path), "evaluations.tasks=[paskey]"]) == 2
    assert (
        "evaluations.tasks: 'paskey' is no task of the offline suite. Did you mean 'passkey'?"
        in capsys.readouterr().err
    )
    with pytest.raises(UserError, match=r"evaluations\.lengths: no task can be asked"):
        live(tasks=("passkey",), lengths=(20,))
    with pytest.raises(UserError, match=r"evaluations\.tasks"):
        load_run_file(run_path, ["evaluations.tasks=[]"])


def test_lengths_at_which_samples_would_turn_each_others_angles_are_refused(
    run_path: Path, save_model: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model("llama", tmp_path / "base", rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0})
    _, section, rest = run_path.read_text().partition("data:")
    run_path.write_text(f'base: {{path: "{tmp_path}/base"}}\n{section}{rest}')
    assert main(["train", str(run_path)]) == 2
    said = capsys.readouterr().err
    assert "evaluations.lengths: above 128 tokens the base's rotary positions (dynamic) depend on" in said
    assert "given 450" in said


def test_scores_of_a_run_are_in_its_metrics_and_its_report(
    run_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(run_path)]) == 0
    said = capsys.readouterr().out
    assert "evaluations: left out: passkey does not fit into 200 tokens" in said
    records = read_metrics(tmp_path / "out" / "metrics.jsonl")
    asked = [record["step"] for record in records if "eval/parity@200" in record]
    assert asked == [2, 4]
    last = records[-1]
    assert last["eval/samples"] == 9
    assert {"eval/passkey@450", "eval/parity@450", "eval/passkey@450/nll"} < last.keys()
    assert "eval/passkey@200" not in last
    assert f"step 4  parity@200 {last['eval/parity@200']:.0%}" in said
    html = (tmp_path / "out" / "report.html").read_text()
    assert "Long-context tasks while training" in html
    assert "450 tokens" in html


@pytest.mark.launch
def test_two_ranks_that_share_the_parameters_score_as_one_process_does(run_path: Path, tmp_path: Path) -> None:
    assert main(["train", str(run_path), "train.micro_batch_size=4"]) == 0
    command = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node=2", ROOT / "train.py"]
    sharded = ["deepspeed.zero_stage=3", "deepspeed.zero_optimization.stage3_param_persistence_threshold=0"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    two = tmp_path / "two"
    subprocess.run([*command, run_path, f"train.output_dir={two}", *sharded], env=environment, check=True, timeout=300)
    alone, shared = (read_metrics(folder / "metrics.jsonl") for folder in (tmp_path / "out", two))
    for step in (1, 3):
        keys = [key for key in alone[step] if key.startswith("eval/")]
        assert len(keys) == 7
        assert {key: shared[step][key] for key in keys} == pytest.approx(
            {key: alone[step][key] for key in keys}, abs=1e-5
        )
