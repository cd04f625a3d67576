"""The verb around results: eval. Torch and transformers are imported when the words of the command are right."""

from __future__ import annotations

import argparse
from pathlib import Path

from lm.arguments import positive
from lm.errors import UserError
from lm.verbs.verb import Verb

COMPARE = "compare"


def _eval(chosen: argparse.Namespace) -> None:
    if chosen.model == COMPARE:
        _compare(chosen)
        return
    if chosen.results:
        raise UserError(
            f"braid eval MODEL takes one model, not also '{chosen.results[0]}'. "
            "To set results side by side: braid eval compare DIR DIR"
        )
    from eval.entry import ModelChoice, evaluate
    from eval.options import PYTHON_DOCUMENTATION, EvaluationOptions

    given = {name: getattr(chosen, name) for name in EvaluationOptions.model_fields}
    if given["perplexity"] == []:
        given["perplexity"] = [PYTHON_DOCUMENTATION]
    if given["tasks"] is None and given["perplexity"] is None:
        given["tasks"] = ("all",)
    options = EvaluationOptions(**{name: value for name, value in given.items() if value is not None})
    output = chosen.output or Path("runs", "evaluations", Path(chosen.model).name)
    evaluate(ModelChoice(chosen.model, chosen.adapter, chosen.revision, chosen.dtype), options, output)


def _compare(chosen: argparse.Namespace) -> None:
    if len(chosen.results) < 2:
        raise UserError("braid eval compare DIR DIR ...: name at least two folders of results")
    from eval.entry import compare

    compare([Path(folder) for folder in chosen.results], chosen.output or Path("comparison.html"))


def _eval_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "braid eval MODEL [options]\n       braid eval compare DIR DIR ... [--output FILE]"
    parser.add_argument("model", metavar="MODEL", help="a run, an export, a Hugging Face folder or id, a .gguf file")
    parser.add_argument("results", nargs="*", metavar="DIR", help="after `compare`: folders that evaluations wrote")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--tasks", type=_words, metavar="A,B", help="tasks and suites by name; all, if none and no text")
    which.add_argument("--suite", type=_words, dest="tasks", metavar="NAME", help="the same")
    parser.add_argument("--lengths", type=_lengths, metavar="N,N", help="tokens of a sample, 512,1024,2048,4096")
    parser.add_argument("--samples", type=positive, metavar="N", help="of each task and length; 50")
    parser.add_argument("--seed", type=_seed, metavar="N", help="decides the samples; 42")
    parser.add_argument("--haystack", type=Path, metavar="PATH", help="text to hide things in; Python's documentation")
    parser.add_argument("--squad", type=Path, metavar="FILE", help="SQuAD v2.0's dev file, for qa_1")
    parser.add_argument("--hotpotqa", type=Path, metavar="FILE", help="HotpotQA's distractor dev file, for qa_2")
    parser.add_argument("--perplexity", type=Path, nargs="*", metavar="TEXT", help="of these; Python's documentation")
    parser.add_argument("--protocols", type=_words, metavar="A,B", help="ways to measure it")
    parser.add_argument("--evaluator", metavar="MODEL", help="finds key tokens; the evaluated model itself")
    parser.add_argument("--text-tokens", type=positive, metavar="N", help="of each text; 32768")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="keeps written samples; .cache/braid/questions")
    parser.add_argument("--output", type=Path, metavar="DIR", help="runs/evaluations/MODEL; for compare, a .html file")
    parser.add_argument("--batch-tokens", type=positive, metavar="N", help="of one forward; 16384")
    parser.add_argument("--adapter", metavar="DIR", help="an adapter over MODEL")
    parser.add_argument("--revision", metavar="NAME", help="of a model on the Hub")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), help="fp32 on a CPU, as saved on a GPU")


def _words(text: str) -> tuple[str, ...]:
    """`a,b` as names, each once."""
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _lengths(text: str) -> tuple[int, ...]:
    """`512,1024` as numbers, each once."""
    return tuple(dict.fromkeys(map(positive, _words(text))))


def _seed(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value


VERBS = {
    "eval": Verb(
        _eval,
        _eval_arguments,
        "Evaluate a model on long contexts, or compare results; called again, it goes on.",
        "braid eval runs/quickstart --tasks passkey --lengths 512,1024",
    ),
}
