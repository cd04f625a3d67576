"""The verb that says which kernels this machine can run. They are imported when it runs."""

from __future__ import annotations

import argparse

from lm.verbs.verb import Verb


def _backends(chosen: argparse.Namespace) -> None:
    from kernels import gated_scan, interval_attention

    for operation, backends in (("attention", interval_attention.backends()), ("scan", gated_scan.backends())):
        for name, reason in backends.items():
            print(f"{operation:10} {name:10} {reason}")


def _arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


VERBS = {
    "backends": Verb(
        _backends,
        _arguments,
        "List the kernels, and why some cannot run on this machine.",
        "braid backends",
    ),
}
