"""The verb around results: eval. Torch and transformers are imported when the words of the command are right."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lm.arguments import lengths, not_negative, one_of, positive, refuse, two_or_more, words
from lm.errors import UserError
from lm.verbs.verb import Verb

COMPARE = "compare"
_LONGBENCH = ("longbench_tasks", "longbench_e")
_HARNESS = ("include_path", "num_fewshot", "limit", "metadata", "gen_kwargs", "max_length", "truncation")
_HARNESS_FLAGS = ("log_samples", "confirm_run_unsafe_code")
_TASKS = ("samples", "seed", "haystack", "squad", "hotpotqa", "cache_dir")
_TEXTS = ("protocols", "evaluator", "text_tokens")
_SUITE = ("lengths", *_TASKS, "perplexity", "text_field", *_TEXTS, "batch_tokens")
_MODEL = ("adapter", "revision", "dtype", "tasks", "longbench", "harness", "apply_chat_template")


def _eval(chosen: argparse.Namespace) -> None:
    if chosen.model == COMPARE:
        _compare(chosen)
        return
    if chosen.results:
        raise UserError(
            f"braid eval MODEL takes one model, not also '{chosen.results[0]}'. "
            "To set results side by side: braid eval compare DIR DIR"
        )
    if chosen.harness:
        _harness(chosen)
        return
    refuse(chosen, (*_HARNESS, *_HARNESS_FLAGS), "--harness")
    if chosen.longbench is None:
        refuse(chosen, _LONGBENCH, "--longbench")
        refuse(chosen, ["apply_chat_template"], "--longbench and --harness")
    else:
        refuse(chosen, ["seed", "haystack", "squad", "hotpotqa"], "the offline suite")
    if chosen.perplexity is None:
        refuse(chosen, _TEXTS, "--perplexity")
    elif not chosen.tasks and chosen.longbench is None:
        refuse(chosen, _TASKS, "--tasks")
    if chosen.perplexity is None and chosen.haystack is None:
        refuse(chosen, ["text_field"], "--perplexity and --haystack")
    from eval.entry import ModelChoice, evaluate
    from eval.options import PYTHON_DOCUMENTATION, EvaluationOptions, LongBenchOptions

    given = {name: getattr(chosen, name) for name in EvaluationOptions.model_fields}
    if given["perplexity"] is not None:  # a text of the user's own that has the name is told by its whole path
        named = [one.absolute() if one == PYTHON_DOCUMENTATION and one.exists() else one for one in chosen.perplexity]
        given["perplexity"] = named or [PYTHON_DOCUMENTATION]
    if given["tasks"] is None and given["perplexity"] is None and given["longbench"] is None:
        given["tasks"] = ("all",)
    if given["longbench"] is not None:
        given["longbench"] = LongBenchOptions(
            data=chosen.longbench,
            tasks=chosen.longbench_tasks or (),
            extended=chosen.longbench_e,
            apply_chat_template=chosen.apply_chat_template,
        )
    options = EvaluationOptions(**{name: value for name, value in given.items() if value is not None})
    evaluate(ModelChoice(chosen.model, chosen.adapter, chosen.revision, chosen.dtype), options, chosen.output)


def _harness(chosen: argparse.Namespace) -> None:
    refuse(chosen, (*_SUITE, *_LONGBENCH), "the offline suite or LongBench, not for --harness")
    from eval.entry import ModelChoice, harness
    from eval.harness import HarnessOptions

    given = {name: getattr(chosen, name) for name in _HARNESS if getattr(chosen, name) is not None}
    flags = {name: getattr(chosen, name) for name in (*_HARNESS_FLAGS, "apply_chat_template")}
    options = HarnessOptions(tasks=chosen.harness, **given, **flags)
    harness(ModelChoice(chosen.model, chosen.adapter, chosen.revision, chosen.dtype), options, chosen.output)


def _compare(chosen: argparse.Namespace) -> None:
    refuse(chosen, (*_MODEL, *_SUITE, *_LONGBENCH, *_HARNESS, *_HARNESS_FLAGS), "evaluating a model")
    if len(chosen.results) < 2:
        raise UserError("braid eval compare DIR DIR ...: name at least two folders of results")
    from eval.entry import compare

    compare([Path(folder) for folder in chosen.results], chosen.output or Path("comparison.html"))


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "braid eval MODEL [options]\n       braid eval compare DIR DIR ... [--output FILE]"
    parser.add_argument("model", metavar="MODEL", help="a run, an export, a Hugging Face folder or id, a .gguf file")
    parser.add_argument(
        "results", nargs="*", default=[], metavar="DIR", help="after `compare`: folders that evaluations wrote"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--tasks", type=words, metavar="A,B", help="tasks and suites by name (default: all, where no text is named)"
    )
    which.add_argument("--suite", type=words, dest="tasks", metavar="NAME", help="another name of --tasks")
    which.add_argument("--longbench", metavar="DATA", help="LongBench: its data.zip or data folder, or a Hub id")
    which.add_argument("--harness", type=words, metavar="A,B", help="tasks of lm-evaluation-harness, or task files")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="DIR",
        help="(default: runs/evaluations/MODEL); of compare, a .html file (default: comparison.html)",
    )
    parser.add_argument("--adapter", metavar="DIR", help="an adapter over MODEL")
    parser.add_argument("--revision", metavar="NAME", help="of a model on the Hub")
    parser.add_argument(
        "--dtype",
        type=one_of(("fp32", "bf16", "fp16")),
        metavar="NAME",
        help="fp32, bf16 or fp16 (default: fp32 on a CPU, as saved on a GPU)",
    )
    parser.add_argument("--apply-chat-template", action="store_true", help="for --longbench and --harness")
    _suite_arguments(parser.add_argument_group("the offline suite"))
    longbench = parser.add_argument_group("LongBench")
    longbench.add_argument("--longbench-tasks", type=words, metavar="A,B", help="by name (default: all of them)")
    longbench.add_argument("--longbench-e", action="store_true", help="LongBench-E")
    harness = parser.add_argument_group("lm-evaluation-harness")
    harness.add_argument(
        "--include-path",
        type=Path,
        metavar="DIR",
        help="a folder of task files; Python that they name by !function is run",
    )
    harness.add_argument(
        "--num-fewshot", type=not_negative, metavar="N", help="examples in prompts (default: as a task says)"
    )
    harness.add_argument("--limit", type=_limit, metavar="X", help="documents of a task, or a share below 1")
    harness.add_argument("--metadata", type=_object, metavar="JSON", help="such as '{\"max_seq_lengths\": [4096]}'")
    harness.add_argument("--gen-kwargs", type=_object, metavar="JSON", help="replace generation arguments")
    harness.add_argument(
        "--max-length", type=positive, metavar="N", help="tokens read at once (default: the model's context)"
    )
    harness.add_argument(
        "--truncation",
        type=one_of(("left", "middle")),
        metavar="END",
        help="what a longer prompt loses, left or middle (default: left)",
    )
    harness.add_argument("--log-samples", action="store_true", help="write every prompt and answer, too")
    harness.add_argument("--confirm-run-unsafe-code", action="store_true", help="of tasks that run written code")


def _suite_arguments(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--lengths", type=lengths, metavar="N,N", help="tokens of a sample (default: 512,1024,2048,4096)"
    )
    group.add_argument("--samples", type=positive, metavar="N", help="of each task and length (default: 50)")
    group.add_argument("--seed", type=not_negative, metavar="N", help="decides the samples (default: 42)")
    group.add_argument(
        "--haystack", type=Path, metavar="PATH", help="text to hide things in (default: Python's documentation)"
    )
    group.add_argument("--squad", type=Path, metavar="FILE", help="SQuAD v2.0's dev file, for qa_1")
    group.add_argument("--hotpotqa", type=Path, metavar="FILE", help="HotpotQA's distractor dev file, for qa_2")
    group.add_argument(
        "--perplexity", type=Path, nargs="*", metavar="TEXT", help="of these texts (default: Python's documentation)"
    )
    group.add_argument("--text-field", metavar="NAME", help="holds the text in files of records (default: text)")
    group.add_argument(
        "--protocols",
        type=words,
        metavar="A,B",
        help="ways to measure it (default: strided,disjoint,last-tokens,by-position)",
    )
    group.add_argument("--evaluator", metavar="MODEL", help="finds key tokens (default: the evaluated model itself)")
    group.add_argument("--text-tokens", type=two_or_more, metavar="N", help="of each text (default: 32768)")
    group.add_argument(
        "--cache-dir", type=Path, metavar="DIR", help="keeps written samples (default: .cache/braid/questions)"
    )
    group.add_argument("--batch-tokens", type=positive, metavar="N", help="of one forward (default: 16384)")


def _object(text: str) -> dict[str, Any]:
    """A JSON object."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text} is no object of names and values")
    return value


def _limit(text: str) -> float:
    """A share below 1, or a whole number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not (0 < value < 1 or (value >= 1 and value.is_integer())):
        raise argparse.ArgumentTypeError(f"{text} is neither a share below 1 nor a whole number")
    return value


VERBS = {
    "eval": Verb(
        _eval,
        _eval_arguments,
        "Evaluate a model on long contexts, or compare results; called again, it goes on.",
        "braid eval runs/quickstart --tasks passkey --lengths 512,1024",
        resumes=True,
    ),
}
