"""Tasks of lm-evaluation-harness on an open model: local task files without any network, built-in ones by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from lm_eval.api.group import Group
from lm_eval.api.task import Task
from lm_eval.evaluator import simple_evaluate
from lm_eval.evaluator_utils import get_sample_size
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from pydantic import Field
from rich.table import Table

from eval.harness.model import BraidLM
from eval.harness.quiet import quiet
from eval.harness.truncation import Side
from eval.model import Model
from eval.terminal import titled_table
from lm.data.fingerprint import digest
from lm.errors import UserError, did_you_mean
from lm.options import Options
from lm.train.distributed import World

Results = dict[str, Any]


class HarnessOptions(Options):
    """What lm-evaluation-harness runs, and how it reads a model."""

    tasks: tuple[str, ...] = Field(min_length=1, description="Tasks, groups or tags by name or glob, or task files.")
    include_path: Path | None = Field(default=None, description="A folder of task files, looked through before others.")
    num_fewshot: int | None = Field(default=None, ge=0, description="Examples in a prompt; null as the task says.")
    limit: float | None = Field(
        default=None, gt=0, description="Documents of each task, or a share of them below 1; null takes all."
    )
    metadata: dict[str, Any] = Field(default={}, description="For tasks that are built from it, such as RULER's.")
    gen_kwargs: dict[str, Any] = Field(default={}, description="Replace generation arguments of the tasks.")
    apply_chat_template: bool = Field(default=False, description="Write prompts in the tokenizer's chat template.")
    system_instruction: str | None = Field(default=None, description="What the conversation begins with.")
    max_length: int | None = Field(default=None, ge=1, description="Tokens read at once; null is the model's context.")
    add_bos_token: bool | None = Field(default=None, description="Begin contexts with bos; null as the tokenizer does.")
    truncation: Side = Field(default="left", description="What a prompt that is too long loses.")
    bootstrap_iters: int = Field(default=100_000, ge=0, description="Resamplings for standard errors without formula.")
    confirm_run_unsafe_code: bool = Field(default=False, description="Allow tasks that run what the model writes.")
    log_samples: bool = Field(default=False, description="Write every prompt and answer beside the results.")


def run_harness(
    model: Model, options: HarnessOptions, output: Path | None = None, world: World | None = None
) -> Results | None:
    """Runs the tasks and returns the harness' own results on rank 0, None on other ranks.

    The results carry `samples` and a key of ours: `shortened_prompts`, how many different ones did not fit, now or when
    an answer that was kept was given.
    output: gets results_*.json (and samples_*.jsonl if asked for) in a folder of the model's name, as the harness lays
    them out. Answers are kept there, too, so that a run that was killed goes on.

    Raises:
        UserError: an unknown task, one that cannot be built here, one that asks the model for what it cannot do, one
            that two groups share, or one with fewer documents than ranks.
    """
    lm = BraidLM(
        model,
        max_length=options.max_length,
        add_bos_token=options.add_bos_token,
        truncation=options.truncation,
        world=world,
    )
    manager = _manager(model, options)
    tasks = _chosen(manager, options.tasks)
    _check(tasks, options, lm.world_size)
    tracker = EvaluationTracker(output_path=None if output is None else str(output))
    with quiet():
        results: Results | None = simple_evaluate(
            lm,
            model_args={"pretrained": model.name},
            tasks=tasks,
            task_manager=manager,
            num_fewshot=options.num_fewshot,
            limit=_limit(options.limit),
            gen_kwargs=options.gen_kwargs or None,
            apply_chat_template=options.apply_chat_template,
            system_instruction=options.system_instruction,
            bootstrap_iters=options.bootstrap_iters,
            confirm_run_unsafe_code=options.confirm_run_unsafe_code,
            use_cache=None if output is None else _cache(output, lm),
            evaluation_tracker=tracker,
        )
    shortened = lm.gather_object(lm.shortened(request for task in _leaves(tasks) for request in task.instances))
    if results is None or shortened is None:
        return None
    results["config"]["model"] = "braid"
    results["shortened_prompts"] = len(set().union(*shortened))
    if output is not None:
        _write(results, tracker, output, options.log_samples)
    return results


def table(results: Results) -> Table:
    """Every figure of tasks and groups with its standard error, for a terminal."""
    shown = titled_table(f"lm-evaluation-harness: {results['config']['model_args']['pretrained']}")
    for column in ("task", "version", "shots", "metric", "filter"):
        shown.add_column(column)
    for column in ("value", "standard error"):
        shown.add_column(column, justify="right")
    for name, figures in {**results["results"], **results.get("groups", {})}.items():
        place = [name, str(results["versions"].get(name, "")), str(results["n-shot"].get(name, ""))]
        for key, value in figures.items():
            metric, _, filtered = key.partition(",")
            if isinstance(value, int | float) and filtered and not metric.endswith("_stderr"):
                error = figures.get(f"{metric}_stderr,{filtered}")
                known = f"{error:.4f}" if isinstance(error, float) else ""
                shown.add_row(*place, metric, filtered, f"{value:.4f}", known)
                place = ["", "", ""]
    return shown


def _manager(model: Model, options: HarnessOptions) -> TaskManager:
    """Knows the built-in tasks only where one is asked for: reading all their files takes seconds."""
    if options.include_path is not None and not options.include_path.is_dir():
        raise UserError(f"--include-path: {options.include_path}: there is no such folder of task files")
    tokenizer = model.tokenizer.name_or_path
    metadata = {"pretrained": tokenizer, "tokenizer": tokenizer} if tokenizer else {}
    settings = {"include_path": options.include_path, "metadata": metadata | options.metadata}
    local = TaskManager(include_defaults=False, **settings)
    if all(_is_file(name) or local.match_tasks([name]) for name in options.tasks):
        return local
    return TaskManager(**settings)


def _chosen(manager: TaskManager, asked: Sequence[str]) -> list[Task | Group]:
    """What the names stand for; without what a group among them contains, since the harness runs no task twice."""
    found: dict[str, Task | Group] = {}
    inside: set[str] = set()
    for name in dict.fromkeys(name for one in asked for name in _names(manager, one)):
        for one in () if name in inside else _load(manager, name):
            found[_name(one)] = one
            if isinstance(one, Group):
                inside |= {_name(part) for part in (*one.get_all_groups(), *one.get_all_tasks())}
    chosen = [one for name, one in found.items() if name not in inside]
    holders: dict[str, str] = {}
    for one in chosen:
        for task in _leaves([one]):
            holder = holders.setdefault(task.task_name, _name(one))
            if holder != _name(one):
                raise UserError(
                    f"{task.task_name} is in both {holder} and {_name(one)}, and the harness runs no task twice: ask "
                    "for each of them in a call of its own"
                )
    return chosen


def _names(manager: TaskManager, asked: str) -> list[str]:
    names: list[str] = [asked] if _is_file(asked) else manager.match_tasks([asked])
    if not names:
        raise UserError(f"--harness: there is no task '{asked}'.{did_you_mean(asked, manager.all_tasks)}")
    return names


def _load(manager: TaskManager, name: str) -> list[Task | Group]:
    with _mistakes(name):
        loaded = manager.load([name])
    return [loaded["groups"][name]] if name in loaded["groups"] else list(loaded["tasks"].values())


def _name(one: Task | Group) -> str:
    name: str = one.name if isinstance(one, Group) else one.task_name
    return name


def _leaves(chosen: Sequence[Task | Group]) -> list[Task]:
    return [task for one in chosen for task in (one.get_all_tasks() if isinstance(one, Group) else [one])]


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _check(tasks: Sequence[Task | Group], options: HarnessOptions, ranks: int) -> None:
    """What would end in the middle of the run."""
    for task in _leaves(tasks):
        if getattr(task, "UNSAFE_CODE", False) and not options.confirm_run_unsafe_code:
            raise UserError(f"{task.task_name} runs code that the model writes: allow it by --confirm-run-unsafe-code")
        documents = len(task.eval_docs)
        documents = min(documents, get_sample_size(task, options.limit) or documents)
        if documents < ranks:
            raise UserError(f"{task.task_name}: {documents} documents are too few for {ranks} ranks: start fewer")


@contextmanager
def _mistakes(task: str) -> Iterator[None]:
    """What a task's file, its code and its data do not allow is for the user to mend."""
    try:
        yield
    except ConnectionError as error:
        raise UserError(
            f"{task}: its data are not on this machine and could not be fetched ({error}). A task file with "
            "`dataset_path: json` and `dataset_kwargs: {data_files: …}` needs no network"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, ImportError, AssertionError, DatasetsError) as error:
        raise UserError(f"{task}: {type(error).__name__}: {error}") from error


def _limit(limit: float | None) -> float | int | None:
    return int(limit) if limit is not None and limit >= 1 else limit


def _cache(output: Path, lm: BraidLM) -> str:
    """A file that answers of another model, or of this one read otherwise, do not share."""
    folder = output / "answers"
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder / digest(lm.get_model_info()))


def _write(results: Results, tracker: EvaluationTracker, output: Path, with_samples: bool) -> None:
    """The harness' own files."""
    samples: dict[str, list[dict[str, Any]]] = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    if with_samples:
        for name in results["configs"]:
            tracker.save_results_samples(task_name=name, samples=[dict(sample) for sample in samples[name]])
    results["samples"] = samples
    if not list(output.glob(f"*/results_{tracker.date_id}.json")):  # the harness only logs why
        raise UserError(f"{output}: the harness could not write its results there")
