"""The data section refuses what could not mean anything."""

import pytest
from pydantic import ValidationError

from lm.data.options import DataOptions
from lm.data.tokenizer_options import HuggingFaceOptions

GENERATED = {"tokenizer": {"kind": "numbers", "size": 8}, "sources": [{"kind": "parity"}]}
VALID = {"tokenizer": {"kind": "bytes"}, "sources": [{"path": "a.txt"}], "sequence_length": 8}


def test_kind_decides_the_tokenizer_options() -> None:
    options = DataOptions.model_validate(VALID | {"tokenizer": {"kind": "huggingface", "path": "folder"}})
    assert isinstance(options.tokenizer, HuggingFaceOptions)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer": {"kind": "sentencepiece"}}, "vocab_size"),
        ({"tokenizer": {"kind": "sentencepiece", "path": "a.model", "vocab_size": 500}}, "vocab_size"),
        ({"tokenizer": {"kind": "sentencepiece", "vocab_size": 100}}, "260"),
        ({"tokenizer": {"kind": "bytes", "vocab_size": 256}}, "vocab_size"),
        ({"tokenizer": {"kind": "words"}}, "sentencepiece"),
        ({"sources": []}, "sources"),
        ({"sources": [{"path": "a.txt", "weight": 0}]}, "weight"),
        ({"sources": [{"path": "a.txt", "weight": float("inf")}]}, "weight"),
        ({"sequence_length": 0}, "sequence_length"),
        ({"sources": [{"path": "a", "hub": {"split": "train[:1%]", "streaming": True}}]}, "a slice of a split"),
        ({"validation": {"fraction": 1}}, "fraction"),
        ({"shards": 0}, "shards"),
        ({**GENERATED, "shards": 2}, "shards: generated sources have none"),
        (
            {"tokenizer": {"kind": "sentencepiece", "vocab_size": 300, "bos_token": "<|a|>"}},
            "no control tokens but <s>",
        ),
        ({"tokenizer": {"kind": "bytes", "bos_token": "<s>"}}, "bos_token"),
        (
            {"tokenizer": {"kind": "sentencepiece"}, "sources": [{"path": "a"}, {"kind": "chat", "path": "b"}]},
            r"tokenizer\.kind: sentencepiece has no chat template, which sources\.1\.kind: chat asks for: set it",
        ),
        (
            {"sources": [{"kind": "sft", "path": "a", "template": "chat"}]},
            r"tokenizer\.kind: bytes has no chat template, which sources\.0\.template: chat asks for",
        ),
    ],
)
def test_a_meaningless_value_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        DataOptions.model_validate(VALID | change)
