"""The `braid` command: finds the verb (`lm/verbs`), runs it, and turns what it raises into exit codes."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Sequence

from lm import __version__
from lm.errors import USER_ERROR, RankError, UserError, did_you_mean
from lm.verbs import VERBS
from lm.verbs.parser import Parser, VerbParser

INTERRUPTED = 130  # 128 + SIGINT, as shells report it
READER_GONE = 141  # 128 + SIGPIPE
OPTIONS = ("--help", "-h", "--version")

EXIT_CODES = f"""\
exit codes:
  0    done; a training that was stopped by a signal has saved, and complete.json is not there yet
  1    a fault of Braid's own, with a traceback; of verify: the step comes out otherwise
  {USER_ERROR}    a mistake in the call or its files, or a run that cannot go on: the message says what to change
  75   a rank was lost: the same command goes on from the newest checkpoint
  {INTERRUPTED}  Ctrl-C where a training has nothing to save; eval, prepare and measure go on when called again
  {READER_GONE}  the reader of the output has gone, as with `| head`"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit code, one of `EXIT_CODES`; what is a fault of ours is raised."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _run(words)
        sys.stdout.flush()
        return 0
    except UserError as error:
        _say(error)
        return USER_ERROR
    except KeyboardInterrupt:
        verb = VERBS.get(words[0]) if words else None
        goes_on = "; the same command goes on from here" if verb is not None and verb.resumes else ""
        print(f"interrupted{goes_on}", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        if not _reader_gone():
            raise
        return READER_GONE


def _say(error: UserError) -> None:
    """Says it, unless another rank does: all ranks of a node find the same, but another node may hold other files."""
    rank = os.environ.get("RANK", "0")
    if rank == "0" or isinstance(error, RankError):
        print(error, file=sys.stderr)
    elif os.environ.get("LOCAL_RANK") == "0":
        print(f"rank {rank}: {error}", file=sys.stderr)


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
    if not arguments:
        raise UserError(parser().format_help().rstrip())
    word = arguments[0]
    if word not in VERBS and word not in OPTIONS:
        kind, known = ("option", OPTIONS) if word.startswith("-") else ("verb", VERBS)
        raise UserError(f"braid has no {kind} '{word}'.{did_you_mean(word, known)} Verbs: {', '.join(VERBS)}")
    chosen = parser().parse_args(arguments)
    VERBS[chosen.verb].run(chosen)


def parser() -> Parser:
    """The whole command's parser."""
    whole = Parser(
        prog="braid",
        description="Trains hybrid long-context language models. Every verb explains itself: braid VERB --help",
    )
    whole.epilog = EXIT_CODES
    whole.add_argument("--version", action="version", version=f"braid {__version__}")
    verbs = whole.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=VerbParser)
    for name, verb in VERBS.items():
        verb.arguments(verbs.add_parser(name, help=verb.summary, description=verb.summary, example=verb.example))
    return whole
