"""Task files that need no network, and requests of lm-evaluation-harness."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.api.instance import Instance
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

QUESTIONS = [
    {"question": f"{first} plus {second} is", "answer": str(first + second), "wrong": str(first + second + 3)}
    for first, second in ((1, 2), (4, 5), (20, 22), (7, 0), (3, 3), (8, 9), (30, 1))
]
TEXTS = [
    {"text": text}
    for text in ("Grüße from the café: naïve résumés — 東京 \U0001f600.", "plain text", "x", "line\n" * 50)
]


@pytest.fixture(scope="session")
def task_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One task of each output type, over rows beside it."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, rows in {"sums": QUESTIONS, "texts": TEXTS}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sums: dict[str, Any] = {
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        **_data(folder / "sums.jsonl"),
    }
    exact = {"metric": "exact", "aggregation": "mean", "higher_is_better": True}
    tasks = {
        "choose": sums
        | {
            "output_type": "multiple_choice",
            "doc_to_choice": "{{[answer, wrong]}}",
            "doc_to_target": 0,
            "metric_list": [{"metric": "acc"}],
        },
        "write": sums
        | {
            "output_type": "generate_until",
            "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": False},
            "process_results": "!function score.exact",
            "metric_list": [exact],
        },
        "read": {
            **_data(folder / "texts.jsonl"),
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
        },
    }
    (folder / "score.py").write_text(
        "def exact(doc, results):\n    return {'exact': float(results[0].strip() == doc['answer'])}\n"
    )
    for name, task in tasks.items():
        text = yaml.safe_dump({"task": name, "test_split": "test", **task})
        (folder / f"{name}.yaml").write_text(text.replace("'!function score.exact'", "!function score.exact"))
    return folder


def _data(path: Path) -> dict[str, Any]:
    return {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(path)}}}


@pytest.fixture(autouse=True)
def _no_network_and_quick(monkeypatch: pytest.MonkeyPatch, task_folder: Path) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TQDM_DISABLE"):
        monkeypatch.setenv(name, "1")
    # It asks pip and the compiler for their versions, which takes longer than all the rest.
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", task_folder / "cache")


@pytest.fixture(scope="session")
def requests() -> Callable[..., list[Instance]]:
    """`requests(kind, *arguments)`: one request of a kind for each tuple of arguments."""

    def make(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
        return [Instance(kind, {}, one, place) for place, one in enumerate(arguments)]

    return make


@pytest.fixture(scope="session")
def begin_with_bos() -> Callable[[PreTrainedTokenizerFast], None]:
    """Makes a tokenizer add its bos to every text, as Llama's does."""

    def change(tokenizer: PreTrainedTokenizerFast) -> None:
        bos = tokenizer.bos_token
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
        )

    return change
