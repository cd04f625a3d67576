"""Verbs around a model: import, export, generate, chat. Torch and transformers are imported by those that need them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm.arguments import positive, share, temperature, whole
from lm.errors import UserError
from lm.verbs.verb import Verb

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def _import(chosen: argparse.Namespace) -> None:
    import yaml

    from lm.hf.importing import import_model
    from lm.train.progress import Progress

    mixers = None
    if chosen.mixers is not None:
        path = Path(chosen.mixers)
        text = path.read_text() if path.suffix in (".yaml", ".yml") and path.is_file() else chosen.mixers
        try:
            mixers = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--mixers: {error}") from None
        if not isinstance(mixers, dict) or not all(
            isinstance(name, str) and isinstance(mixer, dict) for name, mixer in mixers.items()
        ):
            raise UserError("--mixers: mixers by name, for example '{rat: {kind: rat, chunk_size: 32}}'")
    with Progress().phase(f"importing {chosen.model}"):
        imported = import_model(chosen.model, chosen.folder, chosen.layers, mixers, chosen.seed)
    print(imported)


def _export(chosen: argparse.Namespace) -> None:
    from lm.export import export_run
    from lm.train.progress import Progress

    with Progress().phase(f"exporting {chosen.run_folder}"):
        training = export_run(chosen.run_folder, chosen.folder, chosen.adapter_only, chosen.average)
    print(f"{chosen.folder}: the model after {training.steps:,} steps, {training.tokens:,} tokens")


def _generate(chosen: argparse.Namespace) -> None:
    sampling = _sampling(chosen)
    from lm.hf.generate import Sampling, generate

    generate(*_opened(chosen.folder), chosen.prompt, Sampling(**sampling))


def _chat(chosen: argparse.Namespace) -> None:
    sampling = _sampling(chosen)
    from lm.hf.generate import Sampling, chat

    chat(*_opened(chosen.folder), Sampling(**sampling))


def _opened(folder: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and tokenizer of a run, finished or not, of an adapter, or of a Hugging Face folder."""
    from rich.console import Console

    from lm.train.file_names import RUN_FILE
    from lm.train.progress import Progress

    # Text alone goes to standard output, and to a file of errors no bar.
    screen = Progress(console=Console(stderr=True, quiet=not sys.stderr.isatty()))
    with screen.phase(f"opening {folder}"):
        if Path(folder, RUN_FILE).is_file():
            from lm.export import model_of_run, read_run

            return model_of_run(read_run(Path(folder)))
        from lm.hf.loading import ADAPTER_FILE

        if Path(folder, ADAPTER_FILE).is_file():
            from eval.opening import open_model

            opened = open_model(folder)
            return opened.model, opened.tokenizer
        from lm.hf.generate import load

        return load(folder)


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


def _import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face folder, a Hub id, or a .gguf file")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the Braid model goes; new or empty")
    parser.add_argument(
        "--layers",
        metavar="PATTERN",
        help="another pattern of as many layers; weights that fit stay (default: the model's own)",
    )
    parser.add_argument("--mixers", metavar="YAML", help="mixers of that pattern, as YAML or a .yaml file")
    parser.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="draws the weights that are new (default: 0)"
    )


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="the train.output_dir of a run")
    parser.add_argument("folder", type=Path, metavar="DIR", help="where the model goes; new, or an earlier export")
    parser.add_argument("--adapter-only", action="store_true", help="the adapter of an extension without its base")
    parser.add_argument(
        "--average", action="store_true", help="the moving average of the weights (train.average_decay)"
    )


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    _chat_arguments(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT", help="the text to continue")


def _chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="MODEL", help="a run, an export, an adapter, a Hugging Face folder or Hub id")
    parser.add_argument(
        "--max-new-tokens", type=positive, metavar="N", help="at most so many tokens (default: 256, or what fits)"
    )
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token")
    parser.add_argument(
        "--temperature", type=temperature, metavar="X", help="draw from softmax(logits / X) (default: 0.8)"
    )
    parser.add_argument("--top-p", type=share, metavar="P", help="draw from the likeliest share P (default: 0.95)")
    parser.add_argument("--seed", type=whole, metavar="N", help="makes the draw repeatable")


VERBS = {
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
        "Talk with a model whose tokenizer has a chat template. Ctrl-C ends an answer, and at the prompt, as Ctrl-D, "
        "/quit and /exit do, the conversation.",
        "braid chat hybrid --temperature 0.6",
    ),
}
