"""The `braid` command: one verb per job. Torch and DeepSpeed are imported by the verbs that need them."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from lm.errors import UserError, did_you_mean

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0, 2 for a mistake of the user's, 130 for Ctrl-C."""
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # every rank finds the same mistake
            print(error, file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    if arguments and not arguments[0].startswith("-") and arguments[0] not in VERBS:
        raise UserError(
            f"braid has no verb '{arguments[0]}'.{did_you_mean(arguments[0], VERBS)} Verbs: {', '.join(VERBS)}"
        )
    parser = _parser()
    chosen = parser.parse_args(arguments)
    VERBS[chosen.verb].run(chosen)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="braid",
        description="Trains hybrid long-context language models. Every verb explains itself: braid VERB --help",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        sub = verbs.add_parser(
            name,
            help=verb.summary,
            description=verb.summary,
            epilog=f"example: {verb.example}",
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.arguments(sub)
    return parser


def _train(chosen: argparse.Namespace) -> None:
    from lm.run_file import load_run_file

    run = load_run_file(chosen.config, chosen.overrides)
    from lm.train.loop import train  # after the mistakes of the run file, which need not wait for it

    train(run)


def _plan(chosen: argparse.Namespace) -> None:
    from lm.plan_table import plan_run, print_plan
    from lm.run_file import load_run_file

    run = load_run_file(chosen.config, chosen.overrides)
    plan, memory = plan_run(run, chosen.world_size)
    if chosen.json:
        print(json.dumps(plan.to_json() | {"rank_memory": asdict(memory) | {"total": memory.total}}, indent=2))
    else:
        print_plan(run, plan, memory, chosen.world_size)


def _prepare(chosen: argparse.Namespace) -> None:
    from lm.data.prepare import prepare
    from lm.run_file import load_run_file

    prepared = prepare(load_run_file(chosen.config, chosen.overrides).data)
    print(f"{prepared.statistics.tokens:,} tokens to train on, {prepared.validation_statistics.tokens:,} held out")


def _schema(chosen: argparse.Namespace) -> None:
    from lm.run_file import json_schema

    print(json.dumps(json_schema(), indent=2))


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the run file, for example configs/quickstart.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="changes to it by dotted path, for example train.steps=10"
    )


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    # Launchers add this one; ranks read the environment instead.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    parser.add_argument("--world-size", type=_positive, default=1, metavar="N", help="ranks that share the memory")
    parser.add_argument("--json", action="store_true", help="figures for programs instead of a table")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _no_arguments(parser: argparse.ArgumentParser) -> None:
    """A verb without arguments."""


@dataclass(frozen=True)
class Verb:
    """One job of the command."""

    run: Callable[[argparse.Namespace], None]
    arguments: Callable[[argparse.ArgumentParser], None]
    summary: str
    example: str


VERBS = {
    "train": Verb(
        _train,
        _train_arguments,
        "Pretrain a model from a run file; called again, resume.",
        "braid train configs/quickstart.yaml train.steps=10",
    ),
    "plan": Verb(
        _plan,
        _plan_arguments,
        "Print what a run file costs, layer by layer, without training.",
        "braid plan configs/rat-swa-1.3b.yaml --world-size 16",
    ),
    "prepare": Verb(
        _prepare,
        _config_arguments,
        "Train the tokenizer and tokenize the sources ahead of a run.",
        "braid prepare configs/quickstart.yaml",
    ),
    "schema": Verb(
        _schema,
        _no_arguments,
        "Print the JSON schema of run files, for editors.",
        "braid schema > run-file.schema.json",
    ),
}
