"""The `braid` command: one verb per job. Torch and DeepSpeed are imported by the verbs that need them."""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.arguments import above_zero, overrides_of, positive, refuse, share
from lm.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from lm.run_file import AnyRun

USER_ERROR = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells report it
READER_GONE = 141  # 128 + SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code: 0, 2 for a mistake of the user's, 130 for Ctrl-C, 141 for `| head`."""
    try:
        _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return 0
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # every rank finds the same mistake
            print(error, file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        if not _reader_gone():
            raise
        return READER_GONE


def _reader_gone() -> bool:
    """Whether standard output has lost its reader; if so, Python's own flush at the end is kept from saying it."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return gone


def _run(arguments: list[str]) -> None:
    if arguments and not arguments[0].startswith("-") and arguments[0] not in VERBS:
        raise UserError(
            f"braid has no verb '{arguments[0]}'.{did_you_mean(arguments[0], VERBS)} Verbs: {', '.join(VERBS)}"
        )
    chosen, rest = _parser().parse_known_args(arguments)
    if "overrides" in chosen:  # those behind an option are left over by argparse
        chosen.overrides = overrides_of([*chosen.overrides, *rest], chosen.verb, chosen.usage)
    else:
        refuse(rest, chosen.verb, chosen.usage)
    VERBS[chosen.verb].run(chosen)


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
        sub.set_defaults(usage=sub.format_usage())
    return parser


def _train(chosen: argparse.Namespace) -> None:
    run = _run_with_its_text(chosen)
    from lm.train.loop import train  # after the mistakes of the run file, which need not wait for it

    train(run)


def _run_with_its_text(chosen: argparse.Namespace) -> AnyRun:
    from lm.run_file import load_run_file, missing_sources

    run = load_run_file(chosen.config, chosen.overrides)
    if problems := missing_sources(run, chosen.config, chosen.overrides):
        raise UserError("\n".join(problems))
    return run


def _plan(chosen: argparse.Namespace) -> None:
    from lm.plan_table import plan_run, print_plan
    from lm.run_file import load_run_file, missing_sources

    run = load_run_file(chosen.config, chosen.overrides)
    for problem in missing_sources(run, chosen.config, chosen.overrides):
        print(f"to mend before training: {problem}", file=sys.stderr)
    plan, memory = plan_run(run, chosen.world_size)
    if chosen.json:
        print(json.dumps(plan.to_json() | {"rank_memory": asdict(memory) | {"total": memory.total}}, indent=2))
    else:
        print_plan(run, plan, memory, chosen.world_size)


def _prepare(chosen: argparse.Namespace) -> None:
    run = _run_with_its_text(chosen)
    from lm.data.prepare import prepare

    prepared = prepare(run.data)
    print(f"{prepared.statistics.tokens:,} tokens to train on, {prepared.validation_statistics.tokens:,} held out")


def _schema(chosen: argparse.Namespace) -> None:
    from lm.option_reference import reference
    from lm.run_file import json_schema

    print(reference(json_schema()) if chosen.markdown else json.dumps(json_schema(), indent=2))


def _import(chosen: argparse.Namespace) -> None:
    import yaml

    from lm.hf.importing import import_model

    mixers = None
    if chosen.mixers is not None:
        path = Path(chosen.mixers)
        text = path.read_text() if path.suffix in (".yaml", ".yml") and path.is_file() else chosen.mixers
        try:
            mixers = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--mixers: {error}") from None
        if not isinstance(mixers, dict) or not all(isinstance(mixer, dict) for mixer in mixers.values()):
            raise UserError("--mixers: mixers by name, for example '{rat: {kind: rat, chunk_size: 32}}'")
    print(import_model(chosen.model, chosen.folder, chosen.layers, mixers, chosen.seed))


def _export(chosen: argparse.Namespace) -> None:
    from lm.export import export_run

    training = export_run(chosen.run_folder, chosen.folder, chosen.adapter_only)
    print(f"{chosen.folder}: the model after {training.steps:,} steps, {training.tokens:,} tokens")


def _generate(chosen: argparse.Namespace) -> None:
    from lm.hf.generate import Sampling, generate

    generate(chosen.folder, chosen.prompt, Sampling(**_sampling(chosen)))


def _chat(chosen: argparse.Namespace) -> None:
    from lm.hf.generate import Sampling, chat

    chat(chosen.folder, Sampling(**_sampling(chosen)))


def _sampling(chosen: argparse.Namespace) -> dict[str, Any]:
    names = ("max_new_tokens", "greedy", "temperature", "top_p", "seed")
    given = {name: getattr(chosen, name) for name in names if getattr(chosen, name) is not None}
    if chosen.greedy and (drawn := given.keys() & {"temperature", "top_p", "seed"}):
        raise UserError(
            f"--greedy takes the likeliest token: leave out {', '.join(_flag(name) for name in sorted(drawn))}"
        )
    return given


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _config_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", type=Path, metavar="CONFIG", help="the run file, for example configs/quickstart.yaml")
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],  # without it argparse says that one is required
        metavar="key=value",
        help="changes to it by dotted path, for example train.steps=10",
    )


def _train_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    # Launchers add this one; ranks read the environment instead.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)


def _plan_arguments(parser: argparse.ArgumentParser) -> None:
    _config_arguments(parser)
    parser.add_argument("--world-size", type=positive, default=1, metavar="N", help="ranks that share the memory")
    parser.add_argument("--json", action="store_true", help="figures for programs instead of a table")


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face folder, a Hub id, or a .gguf file")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the Braid model goes; new or empty")
    parser.add_argument("--layers", metavar="PATTERN", help="another pattern of as many layers; weights that fit stay")
    parser.add_argument("--mixers", metavar="YAML", help="mixers of that pattern, as YAML or a .yaml file")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="draws the weights that are new")


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the train.output_dir of a run")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the model goes; new, or an earlier export")
    parser.add_argument("--adapter-only", action="store_true", help="the adapter of an extension without its base")


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    _chat_arguments(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")


def _chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a Hugging Face folder or Hub id of any causal model")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="at most so many tokens; 256 if left out")
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument("--temperature", type=above_zero, metavar="X", help="0.8 if left out")
    parser.add_argument("--top-p", type=share, metavar="P", help="draw from the likeliest share P; 0.95 if left out")
    parser.add_argument("--seed", type=int, metavar="N", help="makes the draw repeatable")


def _schema_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--markdown", action="store_true", help="a reference for people instead")


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
    "import": Verb(
        _import,
        _import_arguments,
        "Turn a Llama, Mistral, Qwen or Gemma 3 model into a Braid model, as it is or with another pattern.",
        "braid import HuggingFaceTB/SmolLM2-135M hybrid --layers '(rat global)*15'",
    ),
    "export": Verb(
        _export,
        _export_arguments,
        "Write the model of a run as a Hugging Face folder that loads with or without braid.",
        "braid export runs/quickstart quickstart-model",
    ),
    "generate": Verb(
        _generate,
        _generate_arguments,
        "Continue a prompt with a trained or imported model.",
        "braid generate hybrid --prompt 'def main():' --greedy",
    ),
    "chat": Verb(
        _chat,
        _chat_arguments,
        "Talk with a model whose tokenizer has a chat template.",
        "braid chat hybrid --temperature 0.6",
    ),
    "schema": Verb(
        _schema,
        _schema_arguments,
        "Print the JSON schema of run files, for editors, or all keys as a reference.",
        "braid schema > run-file.schema.json",
    ),
}
