"""Passkey retrieval: a number hidden in repeated filler (Landmark attention, arXiv 2305.16300; LongLoRA's use of it).

Both forms share prompt and filler, which grows by characters and may end inside a word; the filler behind the key
starts over. Lengths are counted in tokens here, the answer included, where the originals count characters.
"""

from __future__ import annotations

from dataclasses import dataclass

from eval.tasks.base import Draft, GeneratedTask, Scene
from eval.tasks.words import FILLER

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
    "I will quiz you about the important information there."
)
KEY_LINE = "The pass key is {key}. Remember it. {key} is the pass key."
QUESTION = "What is the pass key? The pass key is"
LARGEST_KEY = 50_000


@dataclass(frozen=True)
class Passkey(GeneratedTask):
    """Landmark's form: 10 tokens are generated, and the first integer among them must be the key.

    `depth` from 0 to 1 fixes the share of the filler before the key; left out, it is uniform.
    """

    name: str = "passkey"
    depth: float | None = None
    metric = "first_integer"

    def max_new_tokens(self, scene: Scene) -> int:
        return 10

    def write(self, scene: Scene, size: int) -> Draft:
        depth = scene.random("depth").random() if self.depth is None else self.depth
        before = round(depth * size)
        filler = (FILLER + " ") * (size // len(FILLER) + 1)
        key = _key(scene)
        prompt = "\n".join((TASK, filler[:before], KEY_LINE.format(key=key), filler[: size - before], QUESTION))
        return Draft(prompt, (key,), {"depth": depth})


@dataclass(frozen=True)
class LongLoraPasskey(Passkey):
    """LongLoRA's form: as many tokens are generated as the key has, and they must spell it. Strings are compared:
    token ids, as in the original, fail every tokenizer that joins the space to the first digit.
    """

    name: str = "passkey_longlora"
    metric = "exact_match"

    def max_new_tokens(self, scene: Scene) -> int:
        return scene.tokens_behind(QUESTION, f" {_key(scene)}")


def _key(scene: Scene) -> str:
    return str(scene.random("key").randint(1, LARGEST_KEY))
