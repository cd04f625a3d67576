"""`python -m eval …` is `braid eval …`: the form that torchrun starts."""

from __future__ import annotations

import sys

from lm.cli import main

sys.exit(main(["eval", *sys.argv[1:]]))
