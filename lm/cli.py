"""The `braid` command: finds the verb (`lm/verbs`), runs it, and turns what it raises into exit codes."""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Sequence

from lm.arguments import overrides_of, refuse
from lm.errors import UserError, did_you_mean
from lm.verbs import VERBS

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
