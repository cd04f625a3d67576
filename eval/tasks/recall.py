"""Multi-query associative recall (Zoology, arXiv 2312.04927) as words, for models that read text.

A block of key-value lines stands among random words. One key is asked for at the end; how many words lie between the
block and the question follows the law by which the original places its queries. Pairs grow with the length, one per 64
tokens up to 256, since recall is hard by their number.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from eval.tasks.base import Draft, GeneratedTask, Scene
from eval.tasks.words import distinct, plain_words

HEADER = "Remember the value of each key. If a key occurs again, its last value counts."
TOKENS_PER_PAIR = 64
FEWEST_PAIRS, MOST_PAIRS = 4, 256


@dataclass(frozen=True)
class Recall(GeneratedTask):
    """`exponent` a: a gap of g slots of two words has a probability proportional to g^(a-1), so that 1 is uniform and
    0.01 prefers short gaps. `forgetting` gives half of the keys a second value, the one that counts. `compositional`
    makes keys of two words each on a grid, so that neither word alone decides the value.
    """

    name: str
    exponent: float = 0.01
    forgetting: bool = False
    compositional: bool = False
    metric = "first_word"

    def max_new_tokens(self, scene: Scene) -> int:
        return 10

    def least(self, scene: Scene) -> int:
        return 0

    def write(self, scene: Scene, size: int) -> Draft:
        lines, values = self._pairs(scene)
        key, value = scene.random("asked").choice(list(values.items()))
        rng = scene.random("filler")
        filler = [rng.choice(plain_words("verb")) for _ in range(size)]
        gap = self._gap(scene.random("gap"), size)
        before, behind = filler[: size - gap], filler[size - gap :]
        pieces = (HEADER, " ".join(before), *lines, " ".join(behind), f"{key} =")
        return Draft("\n".join(filter(None, pieces)), (value,), {"gap": gap, "pairs": len(values)})

    def _pairs(self, scene: Scene) -> tuple[list[str], dict[str, str]]:
        """The lines in their order, and what each key is worth after the last of them."""
        rng = scene.random("pairs")
        count = max(FEWEST_PAIRS, min(MOST_PAIRS, scene.length // TOKENS_PER_PAIR))
        side = math.isqrt(count)
        nouns = iter(rng.sample([word for word in plain_words("noun") if word not in HEADER], 3 * count))
        if self.compositional:
            columns = [next(nouns) for _ in range(side)]
            rows = distinct(lambda: rng.choice(plain_words("adjective")), side)
            keys = [f"{row} {column}" for row in rows for column in columns]
            rng.shuffle(keys)
        else:
            keys = [next(nouns) for _ in range(count)]
        pairs = [(key, next(nouns)) for key in keys]
        if self.forgetting:
            pairs += [(key, next(nouns)) for key in rng.sample(keys, len(keys) // 2)]
        return [f"{key} = {value}" for key, value in pairs], dict(pairs)

    def _gap(self, rng: random.Random, words: int) -> int:
        slots = words // 2 + 1
        weights = [slot ** (self.exponent - 1) for slot in range(1, slots + 1)]
        return 2 * rng.choices(range(slots), weights)[0]


RECALL = (
    Recall("mqar"),
    Recall("mqar_uniform", exponent=1.0),
    Recall("mqar_forgetting", forgetting=True),
    Recall("mqar_compositional", compositional=True),
)
