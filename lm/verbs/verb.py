"""What a verb of the `braid` command is."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """One job of the command."""

    run: Callable[[argparse.Namespace], None]
    arguments: Callable[[argparse.ArgumentParser], None]
    summary: str
    example: str
    resumes: bool = False
    """Whether it goes on where it was left, when it is called again with the same words."""
