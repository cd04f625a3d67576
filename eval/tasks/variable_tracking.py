"""RULER's variable tracking: which variables got one value, along a chain of assignments (arXiv 2404.06654)."""

from __future__ import annotations

import random
import string
from dataclasses import dataclass
from itertools import pairwise

from eval.tasks.base import Draft, GeneratedTask, Scene
from eval.tasks.niah import within_lines
from eval.tasks.words import FILLER, distinct, letters

HOPS = 4
VARIABLES = HOPS + 1
TEMPLATE = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {value} in the text above. "
    "Answer: According to the chain(s) of variable assignment in the text above, {count} variables are assigned "
    "the value {value}, they are: "
)
EXAMPLE_TOKENS = 500


@dataclass(frozen=True)
class VariableTracking(GeneratedTask):
    """One chain of five names, its statements in order among lines of noise; all five names are asked for.

    A solved example of at most 500 tokens, with names of three letters instead of five, stands before. Below 4,000
    tokens, where RULER has no lengths, the example may take an eighth. The whole chain always fits: noise has at least
    as many lines as the chain has statements.
    """

    name: str = "vt"
    metric = "string_match_all"

    def max_new_tokens(self, scene: Scene) -> int:
        return 30

    def least(self, scene: Scene) -> int:
        return VARIABLES

    def write(self, scene: Scene, size: int) -> Draft:
        rng = scene.random("chains")
        values = distinct(lambda: str(rng.randrange(10_000, 99_999)), 2)
        line = scene.tokens(FILLER + "\n")
        shortest, _ = chain(scene.random("example"), VARIABLES, 3, values[0])
        room = min(EXAMPLE_TOKENS, scene.length // 8) - scene.tokens(shortest)
        example, example_names = chain(scene.random("example"), VARIABLES + max(0, room // line), 3, values[0])
        question, names = chain(rng, size, 5, values[1])
        return Draft(f"{example} {' '.join(example_names)}\n\n{question}", tuple(names))


def chain(rng: random.Random, noise: int, name_length: int, value: str) -> tuple[str, list[str]]:
    """A question with so many lines of noise, and the names that answer it."""
    names = distinct(lambda: letters(rng, name_length, string.ascii_uppercase), VARIABLES)
    statements = [f"VAR {names[0]} = {value}", *(f"VAR {new} = VAR {old} " for old, new in pairwise(names))]
    context = within_lines([FILLER] * noise, statements, rng)
    return TEMPLATE.format(context=context, value=value, count=VARIABLES), names
