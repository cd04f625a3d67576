"""The verbs that say which kernels this machine can run, and build those in C++. They are imported when one runs."""

from __future__ import annotations

import argparse

from lm.errors import UserError
from lm.verbs.verb import Verb


def _backends(chosen: argparse.Namespace) -> None:
    from kernels import gated_scan, interval_attention

    for operation, backends in (("attention", interval_attention.backends()), ("scan", gated_scan.backends())):
        for name, reason in backends.items():
            print(f"{operation:10} {name:10} {reason}")


def _build(chosen: argparse.Namespace) -> None:
    from kernels.native.library import BuildError, build

    try:
        print(build())
    except BuildError as error:
        raise UserError(str(error)) from None


def _arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


VERBS = {
    "backends": Verb(
        _backends,
        _arguments,
        "List the kernels, and why some cannot run on this machine.",
        "braid backends",
    ),
    "build-kernels": Verb(
        _build,
        _arguments,
        "Compile the C++ kernels for this machine's CPU, once; they then run by default.",
        "braid build-kernels",
    ),
}
