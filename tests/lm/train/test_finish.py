"""What a run leaves behind: its sample, whatever the model's size and text, and what it says where a disk fails."""

from __future__ import annotations

import errno
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lm.data.store import StoreWriter, TargetedDocument, TokenStore
from lm.data.tokenizers import BytesTokenizer
from lm.errors import UserError
from lm.train.finish import finished, question, write_sample


class TooLarge(nn.Module):
    """A model for which the GPU has no room."""

    def to(self, place: str) -> TooLarge:  # type: ignore[override]
        if place == "cuda":
            raise torch.OutOfMemoryError
        return self


def test_where_the_gpu_has_no_room_the_sample_is_written_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("lm.train.finish.sample_text", lambda model, *rest: model)
    model: Any = TooLarge()
    prepared: Any = SimpleNamespace(validation=None, tokenizer=None)
    assert write_sample(model, prepared, tokens=3) is model


@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "make room"), (errno.EROFS, "mend that")])
def test_a_disk_that_fails_at_the_end_is_named_with_the_remedy(number: int, remedy: str) -> None:
    def write() -> None:
        raise OSError(number, "of the system")

    request: Any = SimpleNamespace(at_once=nullcontext)
    with pytest.raises(UserError, match=rf"train\.output_dir: .*of the system\. The training is done; {remedy}"):
        finished(request, write)


documents = st.lists(
    st.tuples(st.integers(1, 6), st.integers(1, 4), st.lists(st.booleans(), max_size=4)), min_size=1, max_size=6
)


@given(documents=documents)
@settings(deadline=None, max_examples=60)
def test_the_shortest_prompt_is_asked(documents: list[tuple[int, int, list[bool]]]) -> None:
    masks = [[False] * prompt + [True] * answer + [False, *rest] for prompt, answer, rest in documents]
    tokens = [np.arange(30 * number, 30 * number + len(mask), dtype=np.uint32) for number, mask in enumerate(masks)]
    with tempfile.TemporaryDirectory() as folder:
        with StoreWriter(Path(folder) / "store", BytesTokenizer(), keep_text=False) as writer:
            pairs = zip(tokens, masks, strict=True)
            writer.add_targeted([TargetedDocument(ids, np.array(mask), b"") for ids, mask in pairs])
        prompt, end = question(TokenStore(Path(folder) / "store"))
    shortest = min(range(len(documents)), key=lambda number: documents[number][0])
    length, answer, _ = documents[shortest]
    assert prompt == tokens[shortest][:length].tolist()
    assert end == tokens[shortest][length + answer - 1]
