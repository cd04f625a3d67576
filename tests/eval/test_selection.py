from __future__ import annotations

from pathlib import Path

import pytest

from eval.options import SuiteOptions
from eval.selection import Questions, QuestionWriter, Skipped
from eval.tasks import TASKS, TokenCounter, open_haystack
from lm.data.tokenizers import BytesTokenizer
from lm.errors import UserError


class Counting(BytesTokenizer):
    """Bytes; knows how often it was asked."""

    asked = 0

    def encode(self, text: str) -> list[int]:
        self.asked += 1
        return super().encode(text)


def writer(tokenizer: TokenCounter, folder: Path, fingerprint: str = "bytes", **more: object) -> QuestionWriter:
    options = {"tasks": ("passkey",), "lengths": (600,), "samples": 2, "cache_dir": folder}
    return QuestionWriter(tokenizer, fingerprint, SuiteOptions.model_validate(options | more), open_haystack())


def test_what_was_written_is_found_again_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Counting()
    first = writer(tokenizer, tmp_path).write(TASKS["passkey"], 600)
    assert isinstance(first, Questions)
    assert first.samples == TASKS["passkey"].samples(BytesTokenizer(), 600, 2, 42, open_haystack())
    asked = tokenizer.asked
    assert writer(tokenizer, tmp_path).write(TASKS["passkey"], 600) == first
    assert tokenizer.asked == asked
    with monkeypatch.context() as patch:  # another version of wonderwords
        patch.setattr("eval.selection.lists_digest", lambda: "other")
        assert writer(tokenizer, tmp_path).write(TASKS["passkey"], 600) == first
        assert tokenizer.asked > asked
        asked = tokenizer.asked
    for other in ({"fingerprint": "x"}, {"seed": 1}, {"samples": 3}):
        assert writer(tokenizer, tmp_path, **other).write(TASKS["passkey"], 600) is not None
        assert tokenizer.asked > asked
        asked = tokenizer.asked


def test_what_cannot_be_asked_is_said_and_a_cache_that_cannot_be_written_too(tmp_path: Path) -> None:
    skipped = writer(BytesTokenizer(), tmp_path).write(TASKS["passkey"], 60)
    assert isinstance(skipped, Skipped)
    assert "does not fit into 60 tokens" in skipped.reason
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--cache-dir: .* cannot be written"):
        writer(BytesTokenizer(), tmp_path / "file" / "below").write(TASKS["passkey"], 600)
