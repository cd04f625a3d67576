"""How a conversation is written down: a template of the run file around each prompt, or a tokenizer's chat template.

Either way the text falls into parts by turns to read and to learn, and an answer's part ends with what ends it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from lm.data.fingerprint import digest
from lm.data.options import PairsOptions, SamplesOptions
from lm.data.samples import MalformedError, Turn
from lm.data.tokenizers import HuggingFaceTokenizer, Tokenizer
from lm.errors import UserError, first_line

_log = logging.getLogger(__name__)


class Template(Protocol):
    """A way to write conversations down.

    Attributes:
        fingerprint: equal ones write equally, given equal tokenizers.
        begin: ids that a document begins with.
        end: ids that end an answer where its text does not.
    """

    fingerprint: str
    begin: list[int]
    end: list[int]

    def parts(self, turns: Sequence[Turn]) -> list[str]:
        """The text up to the end of the last answer: by turns what is read and what is learned.

        Raises MalformedError where they cannot be written, UnfitTemplateError where no such turns can.
        """

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of texts that begin where a document does."""


class UnfitTemplateError(MalformedError):
    """Why a template serves for no conversation of a form: a wrong choice of it, not a bad record."""


def template_of(options: SamplesOptions, tokenizer: Tokenizer, key: str) -> Template:
    """The template that a source is written by. Raises UserError, naming `key`, where the tokenizer has none."""
    if isinstance(options, PairsOptions) and not options.by_chat_template:
        return PairTemplate(options.template, tokenizer)
    wish = f"{key}.template: chat" if isinstance(options, PairsOptions) else f"{key}.kind: chat"
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        raise UserError(
            f"{wish} needs the chat template of a tokenizer: set data.tokenizer to one of kind huggingface."
        )
    template = ChatTemplate(tokenizer.folder, wish)
    if template.answer_end != tokenizer.eos_id:
        spelled = template.tokens([template.answer_end, tokenizer.eos_id])
        _log.warning("%s: answers end with %s, not with the eos token %s; the model stops at either", wish, *spelled)
    return template


def answer_ends(tokenizer: Tokenizer, by_chat_template: bool) -> list[int]:
    """Ids at which generation is to end beside eos: that which ends answers, where a chat template writes them."""
    if not by_chat_template:
        return []
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    return [ChatTemplate(tokenizer.folder, "data.tokenizer").answer_end]


class PairTemplate:
    """`[bos]`, the prompt in its template, the answer, `[eos]`. Text is text: no token is spelled in it."""

    def __init__(self, template: str, tokenizer: Tokenizer) -> None:
        self.fingerprint = digest(template)
        self.begin, self.end = [tokenizer.bos_id], [tokenizer.eos_id]
        self._before, self._after = template.split("{prompt}")
        self._tokenizer = tokenizer

    def parts(self, turns: Sequence[Turn]) -> list[str]:
        prompt, answer = turns
        return [self._before + prompt.text + self._after, answer.text]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [ids.tolist() for ids in self._tokenizer.encode_batch(texts)]


class ChatTemplate:
    """The chat template of a Hugging Face folder, run by transformers as `apply_chat_template` runs it.

    answer_end: the id of the special token that ends every answer.
    """

    def __init__(self, folder: Path, key: str) -> None:
        """Raises UserError, naming `key`, where there is no template, or one that does not end its answers."""
        # Only this kind of source needs it, and it takes seconds.
        from transformers import AutoTokenizer

        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        template = self._tokenizer.chat_template
        if not isinstance(template, str):
            raise UserError(f"{key}: the tokenizer in '{folder}' has no chat template; name one that has.")
        self.fingerprint = digest(template)
        self.begin: list[int] = []
        self.end: list[int] = []
        special = {str(token): id for id, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        self._special = re.compile("|".join(map(re.escape, sorted(special, key=len, reverse=True))) or r"(?!)")
        try:
            (ids,) = self.encode_batch(["".join(self.parts([Turn("user", "Question"), Turn("assistant", "Answer")]))])
        except MalformedError as error:
            raise UserError(f"{key}: '{folder}': {error}") from error
        if ids[-1] not in special.values():
            raise UserError(f"{key}: the tokenizer in '{folder}' reads its special tokens as text.")
        self.answer_end = ids[-1]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """How the tokenizer spells each id."""
        spelled: list[str] = self._tokenizer.convert_ids_to_tokens(list(ids))
        return spelled

    def parts(self, turns: Sequence[Turn]) -> list[str]:
        parts: list[str] = []
        written = ""
        for number, turn in enumerate(turns):
            if not turn.is_answer:
                continue
            before = self._render(turns[:number], asking=True)
            after = self._render(turns[: number + 1], asking=False)
            if not (before.startswith(written) and after.startswith(before)):
                raise UnfitTemplateError(
                    "the chat template writes earlier messages in another way once later ones follow, so answers "
                    "cannot be told apart: make it one record per answer, or use another template"
                )
            end = len(before) + self._end(turn.text, after[len(before) :])
            parts += [before[len(written) :], after[len(before) : end]]
            written = after[:end]
        return parts

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _render(self, turns: Sequence[Turn], *, asking: bool) -> str:
        messages = [{"role": turn.role, "content": turn.text} for turn in turns]
        try:
            text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=asking)
        except Exception as error:  # templates raise what they like
            raise MalformedError(f"the chat template refuses it: {first_line(error)}") from error
        return text

    def _end(self, answer: str, written: str) -> int:
        """How much of an answer, as written, there is up to the token that ends it, which is included."""
        answer = answer.strip()
        if spelled := self._special.search(answer):
            raise MalformedError(f"an answer spells '{spelled[0]}', a token that is no text")
        begin = written.find(answer)
        end = self._special.search(written, begin + len(answer)) if begin >= 0 else None
        if end is None:
            raise MalformedError(
                "the chat template does not write the answer followed by a special token, so a model could not learn "
                "where it ends"
            )
        return end.end()
