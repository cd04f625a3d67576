"""RULER's question answering among distracting paragraphs, from local files of SQuAD v2.0 and HotpotQA (distractor)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from eval.tasks.base import CannotBuildError, Draft, GeneratedTask, Sample, Scene, TokenCounter, stream
from eval.tasks.haystack import Haystack
from lm.errors import UserError, first_line

ORDER = "Answer the question based on the given documents. Only give me the answer and do not output any other words."
TEMPLATE = f"{ORDER}\n\nThe following are given documents.\n\n{{context}}\n\n{ORDER}\n\nQuestion: {{question}} Answer:"
PUBLISHED = {"squad": "dev-v2.0.json", "hotpotqa": "hotpot_dev_distractor_v1.json"}
TRIES = 20
"""So many questions per sample may be passed over because their own documents do not fit."""


@dataclass(frozen=True)
class Question:
    """What is asked, all accepted answers, the documents it rests on, and those of the same article."""

    text: str
    answers: tuple[str, ...]
    gold: tuple[str, ...]
    related: tuple[str, ...]


@dataclass(frozen=True)
class Questions:
    """All questions of a file and all its different documents."""

    asked: tuple[Question, ...]
    documents: tuple[str, ...]


@dataclass(frozen=True)
class QuestionAnswering(GeneratedTask):
    """The gold documents among others of the same article first, then any, shuffled and numbered. Units are documents.

    Questions come in an order drawn from the seed, where NVIDIA takes the file's: its first hundred are of few
    articles. Those whose own documents do not fit are passed over.
    """

    name: str
    source: Literal["squad", "hotpotqa"]
    metric = "string_match_part"

    @property
    def texts(self) -> tuple[str, ...]:
        return (self.source,)

    def samples(self, tokenizer: TokenCounter, length: int, count: int, seed: int, haystack: Haystack) -> list[Sample]:
        total = len(self._questions(haystack).asked)
        order = stream(seed, self.name, "order").sample(range(total), total)
        made: list[Sample] = []
        for index in islice(order, TRIES * count):
            if len(made) == count:
                break
            scene = Scene(self.name, index, length, seed, tokenizer, haystack)
            if scene.tokens(self.write(scene, self.least(scene)).prompt) + self.max_new_tokens(scene) <= length:
                made.append(self.sample(scene, made))
        if len(made) < count:
            raise CannotBuildError(
                f"{self.name} has {len(made)} questions whose own documents fit into {length} tokens, of "
                f"{min(total, TRIES * count)} tried, and {count} are needed. Ask for a longer length or fewer samples."
            )
        return made

    def max_new_tokens(self, scene: Scene) -> int:
        return 32

    def least(self, scene: Scene) -> int:
        return len(self._question(scene).gold)

    def most(self, scene: Scene) -> int | None:
        return len(self._questions(scene.haystack).documents)

    def write(self, scene: Scene, size: int) -> Draft:
        question = self._question(scene)
        rng = scene.random("documents")
        room = size - len(question.gold)
        related = rng.sample(question.related, min(room, len(question.related)))
        known = {*question.gold, *question.related}
        others = [text for text in self._questions(scene.haystack).documents if text not in known]
        documents = [*question.gold, *related, *rng.sample(others, room - len(related))]
        scene.random("order").shuffle(documents)
        context = "\n\n".join(f"Document {number}:\n{text}" for number, text in enumerate(documents, 1))
        return Draft(TEMPLATE.format(context=context, question=question.text), question.answers)

    def _question(self, scene: Scene) -> Question:
        return self._questions(scene.haystack).asked[scene.index]

    def _questions(self, haystack: Haystack) -> Questions:
        path = haystack.squad if self.source == "squad" else haystack.hotpotqa
        if path is None:
            needed = f"{self.name} needs a local copy of {PUBLISHED[self.source]}"
            raise CannotBuildError(f"{needed}: name it under {haystack.written(self.source)}.")
        return named_questions(path, self.source, haystack.written)


def named_questions(path: Path, source: Literal["squad", "hotpotqa"], written: Callable[[str], str]) -> Questions:
    """The questions of the file that the option of the source's name names. Raises UserError as `read_questions`."""
    try:
        return read_questions(path, source)
    except UserError as error:
        raise UserError(f"{written(source)}: {error}") from None


@lru_cache(maxsize=2)
def read_questions(path: Path, source: Literal["squad", "hotpotqa"]) -> Questions:
    """The questions of a published file; of SQuAD v2.0 those that have an answer.

    Raises:
        UserError: the file is missing, no JSON, or of another form.
    """
    readers: dict[str, Callable[[Any], list[Question]]] = {"squad": _squad, "hotpotqa": _hotpotqa}
    try:
        asked = readers[source](json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UserError(f"'{path}' is not JSON ({first_line(error)}): name {PUBLISHED[source]}.") from None
    except (KeyError, TypeError):
        raise UserError(f"'{path}' is not of the published form: name {PUBLISHED[source]}.") from None
    documents = dict.fromkeys(text for question in asked for text in (*question.gold, *question.related))
    return Questions(tuple(asked), tuple(sorted(documents)))


def _squad(content: Any) -> list[Question]:
    asked = []
    for article in content["data"]:
        texts = dict.fromkeys(paragraph["context"] for paragraph in article["paragraphs"])
        for paragraph in article["paragraphs"]:
            related = tuple(text for text in texts if text != paragraph["context"])
            asked += [
                Question(
                    entry["question"],
                    tuple(dict.fromkeys(answer["text"] for answer in entry["answers"])),
                    (paragraph["context"],),
                    related,
                )
                for entry in paragraph["qas"]
                if not entry["is_impossible"]
            ]
    return asked


def _hotpotqa(content: Any) -> list[Question]:
    return [
        Question(
            entry["question"],
            (entry["answer"],),
            tuple(dict.fromkeys(f"{title}\n{''.join(sentences)}" for title, sentences in entry["context"])),
            (),
        )
        for entry in content
    ]
