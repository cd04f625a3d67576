from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import normalizers

from eval.harness import BraidLM, HarnessOptions, run_harness
from eval.harness.run import _check, _chosen, _manager, table
from eval.model import Model, TokenScores
from eval.opening import open_model
from lm.errors import UserError

NewModel = Callable[..., Model]
ALL = ("choose", "write", "read")
SCRIPT = Path(__file__).with_name("ranks_script.py")


class Told(Model):
    """Answers questions with what it was told, token for token."""

    def __init__(self, model: Model, answers: dict[str, str]) -> None:
        super().__init__(model.model, model.tokenizer, "told")
        self.answers = answers

    def token_scores(self, rows: Sequence[Sequence[int]]) -> list[TokenScores]:
        found = super().token_scores(rows)
        for row, scores in zip(rows, found, strict=True):
            text = self.decode(row)
            known = any(text == f"{question} {answer}" for question, answer in self.answers.items())
            scores.nll[:] = 0.0 if known else 5.0
        return found

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop: Sequence[str] = ()
    ) -> list[list[int]]:
        return [self.encode(" " + self.answers[self.decode(prompt)])[:max_new_tokens] for prompt in prompts]


def options(folder: Path, *tasks: str, **more: Any) -> HarnessOptions:
    return HarnessOptions(tasks=tasks or ALL, include_path=folder, bootstrap_iters=0, **more)


def run(model: Model, chosen: HarnessOptions, output: Path | None = None) -> dict[str, Any]:
    results = run_harness(model, chosen, output)
    assert results is not None
    return results


def test_one_that_knows_the_answers_gets_all_points(new_model: NewModel, task_folder: Path) -> None:
    rows = [json.loads(line) for line in (task_folder / "sums.jsonl").read_text().splitlines()]
    told = Told(new_model("llama"), {row["question"]: row["answer"] for row in rows})
    results = run(told, options(task_folder, "choose", "write"))["results"]
    assert results["choose"]["acc,none"] == 1.0
    assert results["write"]["exact,none"] == 1.0
    wrong = Told(told, {row["question"]: row["wrong"] for row in rows})
    results = run(wrong, options(task_folder, "choose", "write"))["results"]
    assert results["choose"]["acc,none"] == 0.0
    assert results["write"]["exact,none"] == 0.0


def test_a_uniform_model_has_a_byte_perplexity_of_256(new_model: NewModel, task_folder: Path) -> None:
    model = new_model("llama", vocab_size=256, bos_token_id=0, eos_token_id=0)
    model.tokenizer.bos_token = model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(0)
    with torch.no_grad():
        model.model.get_output_embeddings().weight.zero_()
    found = run(model, options(task_folder, "read"))["results"]["read"]
    assert found["byte_perplexity,none"] == pytest.approx(256, rel=1e-6)
    assert found["bits_per_byte,none"] == pytest.approx(8, rel=1e-7)


def test_figures_are_those_of_the_hf_type(new_model: NewModel, task_folder: Path) -> None:
    model = new_model("llama")
    ours = run(model, options(task_folder))["results"]
    lm = HFLM(pretrained=model.model, tokenizer=model.tokenizer, add_bos_token=False)
    manager = TaskManager(include_path=str(task_folder), include_defaults=False)
    theirs = lm_eval.simple_evaluate(lm, tasks=list(ALL), task_manager=manager, bootstrap_iters=0)["results"]
    assert ours.keys() == theirs.keys()
    for task, figures in theirs.items():
        for name, figure in figures.items():
            if isinstance(figure, float):
                assert ours[task][name] == pytest.approx(figure, rel=1e-4), (task, name)
    assert math.isfinite(ours["read"]["byte_perplexity,none"])


@pytest.mark.parametrize("kind", ["llama", "hybrid"])
def test_a_folder_is_a_model_type_by_name(
    save_model: Callable[..., None], task_folder: Path, tmp_path: Path, kind: str
) -> None:
    save_model(kind, tmp_path / "model")
    manager = TaskManager(include_path=str(task_folder), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model="braid",
        model_args=f"pretrained={tmp_path / 'model'},dtype=float32",
        tasks=list(ALL),
        batch_size=4,
        task_manager=manager,
        bootstrap_iters=0,
    )
    same = run(open_model(tmp_path / "model"), options(task_folder))
    for task, figures in same["results"].items():
        for name, figure in figures.items():
            assert found["results"][task][name] == (
                pytest.approx(figure, rel=1e-5) if isinstance(figure, float) else figure
            )
    assert found["config"]["model_sha"] == same["config"]["model_sha"]


def test_results_are_written_as_the_harness_writes_them(new_model: NewModel, task_folder: Path, tmp_path: Path) -> None:
    chosen = options(task_folder, "write", "choose", log_samples=True, limit=3)
    results = run(new_model("llama"), chosen, tmp_path)
    (written,) = tmp_path.glob("llama/results_*.json")
    stored = json.loads(written.read_text())
    assert stored["results"] == results["results"]
    assert stored["shortened_prompts"] == 0
    assert (stored["config"]["model"], stored["model_name"]) == ("braid", "llama")
    (samples,) = tmp_path.glob("llama/samples_write_*.jsonl")
    assert [json.loads(line)["doc_id"] for line in samples.read_text().splitlines()] == [0, 1, 2]
    assert len(results["samples"]["choose"]) == 3
    assert list(table(results).columns[3].cells) == ["exact", "acc"]


def test_what_was_answered_is_not_asked_again(new_model: NewModel, task_folder: Path, tmp_path: Path) -> None:
    model = new_model("llama")
    first = run(model, options(task_folder), tmp_path)
    model.generate = model.token_scores = None  # type: ignore[assignment, method-assign]
    assert run(model, options(task_folder), tmp_path)["results"] == first["results"]
    with pytest.raises(TypeError):  # read otherwise, it would answer otherwise
        run(model, options(task_folder, max_length=20), tmp_path)
    model.tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(TypeError):
        run(model, options(task_folder), tmp_path)


@pytest.mark.parametrize(("task", "rows"), [("choose", 14), ("read", 4)])
def test_a_run_that_is_killed_goes_on(
    new_model: NewModel, task_folder: Path, tmp_path: Path, task: str, rows: int
) -> None:
    class Killed(Model):
        read = 0
        most = 3

        def token_scores(self, rows: Sequence[Sequence[int]]) -> list[TokenScores]:
            self.read += len(rows)
            if self.read > self.most:
                raise KeyboardInterrupt
            return super().token_scores(rows)

    whole = new_model("llama", max_position_embeddings=512)
    whole.batch_tokens = 1
    model = Killed(whole.model, whole.tokenizer, "killed", batch_tokens=1)
    with pytest.raises(KeyboardInterrupt):
        run(model, options(task_folder, task), tmp_path)
    model.read, model.most = 0, rows
    assert (
        run(model, options(task_folder, task), tmp_path)["results"] == run(whole, options(task_folder, task))["results"]
    )
    assert model.read == rows - 3


def test_kept_answers_know_which_prompts_did_not_fit(new_model: NewModel, task_folder: Path, tmp_path: Path) -> None:
    model = new_model("llama")
    counts = [
        run(model, options(task_folder, *tasks, max_length=12), tmp_path)["shortened_prompts"]
        for tasks in (("write", "choose"), ("write", "choose"), ("write",), ("choose",))
    ]
    assert counts[0] == counts[1]
    assert counts[2:] == [
        run(model, options(task_folder, task, max_length=12))["shortened_prompts"] for task in ("write", "choose")
    ]
    assert min(counts) > 0


def test_prompts_that_do_not_fit_are_in_the_results(new_model: NewModel, task_folder: Path) -> None:
    results = run(new_model("llama"), options(task_folder, "write", max_length=12, truncation="middle"))
    fits = 16 - 6
    questions = [json.loads(line)["question"] for line in (task_folder / "sums.jsonl").read_text().splitlines()]
    assert results["shortened_prompts"] == sum(len(question) > fits for question in questions) > 0
    assert results["config"]["truncation"] == "middle"


def test_mistakes_are_said_by_name(new_model: NewModel, task_folder: Path, tmp_path: Path) -> None:
    model = new_model("llama")
    with pytest.raises(UserError, match="no such folder"):
        run(model, options(tmp_path / "none", "write"))
    with pytest.raises(UserError, match="nowhere"):
        run(model, options(task_folder, "nowhere.yaml"))
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/none.jsonl}}}}\n"
    (tmp_path / "broken.yaml").write_text(f"task: broken\n{data}test_split: test\noutput_type: generate_until\n")
    with pytest.raises(UserError, match=r"broken: .*none\.jsonl"):
        run(model, options(tmp_path, "broken"))


def test_a_task_of_another_name_is_guessed(
    new_model: NewModel, task_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built-in tasks are left out: reading their files takes seconds."""
    monkeypatch.setattr(
        "eval.harness.run.TaskManager", lambda **given: TaskManager(**given | {"include_defaults": False})
    )
    with pytest.raises(UserError, match=r"no task 'chose'\. Did you mean 'choose'"):
        run(new_model("llama"), options(task_folder, "chose"))


def test_a_file_and_a_glob_name_tasks(new_model: NewModel, task_folder: Path) -> None:
    found = run(new_model("llama"), options(task_folder, str(task_folder / "write.yaml"), "cho*", limit=1))
    assert set(found["results"]) == {"write", "choose"}


@pytest.fixture
def groups(task_folder: Path, tmp_path: Path) -> Path:
    """The tasks, and groups of them: `all` holds `asked` and a task, `two` shares one with `asked`."""
    shutil.copytree(task_folder, tmp_path / "groups", ignore=shutil.ignore_patterns("cache"))
    for name, tasks in {"all": ["asked", "read"], "asked": ["choose", "write"], "two": ["write", "read"]}.items():
        (tmp_path / "groups" / f"{name}.yaml").write_text(json.dumps({"group": name, "task": tasks}))
    return tmp_path / "groups"


@pytest.mark.parametrize("names", [("a*",), ("choose", "all"), ("asked", "write", "all", "read")])
def test_what_a_group_contains_is_not_run_beside_it(new_model: NewModel, groups: Path, names: tuple[str, ...]) -> None:
    found = run(new_model("llama"), options(groups, *names, limit=1))
    assert set(ALL) <= set(found["results"])
    assert found["group_subtasks"] == {"all": ["asked", "read"], "asked": ["choose", "write"]}


def test_a_task_of_two_groups_is_refused(new_model: NewModel, groups: Path) -> None:
    with pytest.raises(UserError, match=r"write is in both asked and two, and the harness runs no task twice"):
        run(new_model("llama"), options(groups, "asked", "two"))


@pytest.mark.parametrize(("limit", "enough"), [(0.1, False), (1, False), (0.15, True), (2, True), (None, True)])
def test_every_rank_gets_a_document(new_model: NewModel, task_folder: Path, limit: float | None, enough: bool) -> None:
    chosen = options(task_folder, "write", limit=limit)
    tasks = _chosen(_manager(new_model("llama"), chosen), chosen.tasks)
    if enough:
        _check(tasks, chosen, 2)
    else:
        with pytest.raises(UserError, match="write: 1 documents are too few for 2 ranks"):
            _check(tasks, chosen, 2)


@pytest.mark.launch
def test_two_ranks_find_what_one_finds(save_model: Callable[..., None], task_folder: Path, tmp_path: Path) -> None:
    save_model("hybrid", tmp_path / "model")
    chosen = options(task_folder, max_length=16)
    alone = run(open_model(tmp_path / "model"), chosen)
    torchrun = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc_per_node=2"]
    (tmp_path / "options.json").write_text(chosen.model_dump_json())
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    subprocess.run([*torchrun, SCRIPT, tmp_path], env=environment, check=True, timeout=300)
    together = json.loads((tmp_path / "results.json").read_text())
    assert together["shortened"] == alone["shortened_prompts"] > 0
    for task, figures in alone["results"].items():
        for name, figure in figures.items():
            if isinstance(figure, float):
                assert together["results"][task][name] == pytest.approx(figure, rel=1e-6), (task, name)


def test_the_type_is_registered() -> None:
    assert lm_eval.api.registry.get_model("braid") is BraidLM
