"""Two ways to count tokens, and texts to make tasks of."""

from __future__ import annotations

import json
import random
import re

import pytest

from eval.options import EvaluationOptions
from eval.tasks import Haystack, TokenCounter, open_haystack


class Bytes:
    """Every byte is a token."""

    def encode(self, text: str) -> list[int]:
        return list(text.encode())


class Words:
    """Every word and every mark is a token."""

    def encode(self, text: str) -> list[int]:
        return [len(piece) for piece in re.findall(r"\w+|[^\w\s]", text)]


@pytest.fixture(scope="session", params=[Bytes, Words])
def counter(request: pytest.FixtureRequest) -> TokenCounter:
    return request.param()


@pytest.fixture(scope="session")
def haystack(tmp_path_factory: pytest.TempPathFactory) -> Haystack:
    """The default text, and question files of the published forms: 20 articles of 12 paragraphs."""
    folder = tmp_path_factory.mktemp("questions")
    rng = random.Random(0)
    squad, hotpotqa = [], []
    for article in range(20):
        facts = [(f"town {article}.{place}", f"colour {rng.randrange(10**6)}") for place in range(12)]
        texts = [f"The flag of {town} has the {colour}. " + "It is seldom seen. " * 12 for town, colour in facts]
        squad.append(
            {
                "title": str(article),
                "paragraphs": [_paragraph(*fact, text) for fact, text in zip(facts, texts, strict=True)],
            }
        )
        contexts = [[town, [text]] for (town, _), text in zip(facts, texts, strict=True)]
        hotpotqa += [
            {"question": f"Which colour has {town}?", "answer": colour, "context": contexts[:5]}
            for town, colour in facts[:5]
        ]
    (folder / "squad.json").write_text(json.dumps({"version": "v2.0", "data": squad}))
    (folder / "hotpotqa.json").write_text(json.dumps(hotpotqa))
    return open_haystack(EvaluationOptions(squad=folder / "squad.json", hotpotqa=folder / "hotpotqa.json"))


def _paragraph(town: str, colour: str, text: str) -> dict[str, object]:
    answers = [{"text": colour, "answer_start": 0}, {"text": f"the {colour}", "answer_start": 0}]
    return {
        "context": text,
        "qas": [
            {"question": f"Which colour has the flag of {town}?", "answers": answers, "is_impossible": False},
            {"question": f"Who painted the flag of {town}?", "answers": [], "is_impossible": True},
        ],
    }
