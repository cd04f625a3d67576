"""Retrieval from records: json_kv (HELMET, arXiv 2410.02694) and line retrieval (LongChat's LongEval)."""

from __future__ import annotations

from dataclasses import dataclass

from eval.tasks.base import Draft, GeneratedTask, Scene
from eval.tasks.words import compound, distinct, unique_id

EXTRACT = "Extract the value corresponding to the specified key in the JSON object below."
ANSWER = "Key: {key}\nCorresponding value:"
DEPTHS = 6
SHOTS = 2

RECORD = (
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains a "
    "'<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its "
    "corresponding <REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding "
    "<REGISTER_CONTENT> of a certain line index. Now the record start:\n\n"
)
ASK = "\n\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {index}? I need the number.\n"
LINE = "line {index}: REGISTER_CONTENT is"
LARGEST_VALUE = 50_000


@dataclass(frozen=True)
class JsonKv(GeneratedTask):
    """A JSON object of random UUIDs; two of its other pairs are asked and answered before the question. The pair asked
    for stands at one of six even depths, in turn.
    """

    name: str = "json_kv"
    metric = "substring_exact_match"

    def max_new_tokens(self, scene: Scene) -> int:
        return 100

    def least(self, scene: Scene) -> int:
        return DEPTHS

    def write(self, scene: Scene, size: int) -> Draft:
        rng = scene.random("pairs")
        ids = distinct(lambda: unique_id(rng), 2 * size)
        keys, values = ids[::2], ids[1::2]
        step = scene.index % DEPTHS
        gold = step * (size - 1) // (DEPTHS - 1)
        shots = scene.random("shots").sample([place for place in range(size) if place != gold], SHOTS)
        json = "{" + ",\n ".join(f'"{key}": "{value}"' for key, value in zip(keys, values, strict=True)) + "}"
        demos = "".join(f"{ANSWER.format(key=keys[place])} {values[place]}\n\n" for place in shots)
        prompt = f"JSON data:\n{json}\n\n{EXTRACT}\n\n{demos}{ANSWER.format(key=keys[gold])}"
        return Draft(prompt, (values[gold],), {"depth": step / (DEPTHS - 1)})


@dataclass(frozen=True)
class LineRetrieval(GeneratedTask):
    """Lines named by adjective and noun, each with a number. The last integer of the answer must be the line's.

    The prompt ends with the line's own beginning, and no more is generated than the number needs, since whatever else
    has digits would be taken for the answer.
    """

    name: str = "line_retrieval"
    metric = "last_integer"

    def max_new_tokens(self, scene: Scene) -> int:
        return scene.tokens_behind("REGISTER_CONTENT is", f" <{LARGEST_VALUE}>")

    def least(self, scene: Scene) -> int:
        return 2

    def write(self, scene: Scene, size: int) -> Draft:
        rng = scene.random("names")
        names = distinct(lambda: compound(rng), size)
        values = scene.random("values").choices(range(1, LARGEST_VALUE + 1), k=size)
        asked = int(scene.random("asked").random() * size)
        lines = (f"{LINE.format(index=name)} <{value}>" for name, value in zip(names, values, strict=True))
        question = ASK.format(index=names[asked]) + LINE.format(index=names[asked])
        return Draft(RECORD + "\n".join(lines) + question, (str(values[asked]),), {"depth": asked / (size - 1)})
