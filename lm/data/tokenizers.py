"""Text to token ids and back: bytes, SentencePiece, Hugging Face fast tokenizers, numbers.

A document in a token store is `[bos] text [eos]`, or `[bos] text` where that is asked for. A model that has only one of
the two uses it at both ends, unless the options name others.
Tokenizers encode text as text: a `<s>` or `<|endoftext|>` that stands in a document is characters, not a boundary.
"""

from __future__ import annotations

import json
import shutil
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import sentencepiece

from lm.data.document_ends import ends_of, ends_only, fingerprint_of
from lm.data.threads import threads
from lm.data.tokenizer_options import (
    BytesOptions,
    EndsOptions,
    HuggingFaceOptions,
    NumbersOptions,
    SentencePieceOptions,
    TokenizerOptions,
)
from lm.errors import UserError

_KIND_FILE = "braid_tokenizer.json"
_MODEL_FILE = "tokenizer.model"
_HUGGING_FACE_FILES = ("tokenizer.json", "tokenizer_config.json")
_USUAL_ENDS = EndsOptions()
# SentencePiece writes a space as this character, so the character itself needs another spelling.
_SPACE_MARK = "\u2581"


class Tokenizer(Protocol):
    """What the rest of the house may ask of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """Ids are in [0, vocab_size)."""

    @property
    def bos_id(self) -> int:
        """Begins every document."""

    @property
    def eos_id(self) -> int:
        """Ends answers, what is generated, and every text where `ends_texts`."""

    @property
    def ends_texts(self) -> bool:
        """Whether a text in a token store ends with `eos_id`."""

    @property
    def unk_id(self) -> int | None:
        """What stands for text that has no tokens; None where there is no such text, or an end looks the same."""

    @property
    def fingerprint(self) -> str:
        """Equal fingerprints encode equally."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without bos and eos."""

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The same for many texts at once, on as many threads as `lm.data.threads` says; each uint32."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; bos and eos spell nothing."""

    def save(self, folder: Path) -> None:
        """Writes what `load_tokenizer(folder)` reads."""


class BytesTokenizer:
    """UTF-8 bytes. Round-trips every string; a cut character decodes to U+FFFD."""

    vocab_size = 258
    bos_id = 256
    eos_id = 257
    unk_id = None

    def __init__(self, ends_texts: bool = True) -> None:
        self.ends_texts = ends_texts
        self.fingerprint = "bytes" if ends_texts else "bytes, texts without eos"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return bytes(id for id in ids if id < 256).decode(errors="replace")

    def save(self, folder: Path) -> None:
        _write_kind(folder, BytesOptions(add_eos_token=self.ends_texts).model_dump())


class NumbersTokenizer:
    """Decimal numbers 0 .. size - 1 between white space, each its own id; bos and eos follow them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.vocab_size = size + 2
        self.bos_id, self.eos_id = size, size + 1
        self.ends_texts = True
        self.unk_id = None
        self.fingerprint = f"numbers {size}"

    def encode(self, text: str) -> list[int]:
        """Raises UserError for anything but such numbers."""
        words = text.split()
        for word in words:
            if not (word.isdecimal() and word.isascii() and int(word) < self.size):
                raise UserError(f"'{word}' is not a token: the model reads whole numbers from 0 to {self.size - 1}")
        return [int(word) for word in words]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [np.array(self.encode(text), dtype=np.uint32) for text in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return " ".join(str(int(id)) for id in ids if id < self.size)

    def save(self, folder: Path) -> None:
        _write_kind(folder, NumbersOptions(size=self.size).model_dump())


class SentencePieceTokenizer:
    """A SentencePiece model.

    Models trained here normalize nothing and spell unknown characters as bytes, so every string round-trips exactly.
    A foreign model keeps its own normalization, and round-trips as far as that allows.
    """

    def __init__(self, model: bytes, origin: str, ends: EndsOptions = _USUAL_ENDS) -> None:
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f"{origin} is not a SentencePiece model.") from error
        self.model = model
        self.vocab_size: int = self.processor.get_piece_size()
        controls = (self.processor.bos_id(), self.processor.eos_id(), self.processor.unk_id())
        *own, self.unk_id = (id if id >= 0 else None for id in controls)
        self.bos_id, self.eos_id = ends_of(own, ends, self._control_id, origin)
        self.ends, self.ends_texts = ends, ends.add_eos_token
        self.fingerprint = fingerprint_of([model], own, self)
        self._space_mark_ids = self._spell_space_mark()

    def _control_id(self, token: str) -> int | None:
        id: int = self.processor.piece_to_id(token)
        return id if self.processor.is_control(id) else None

    def _spell_space_mark(self) -> list[int] | None:
        """The byte pieces of the space mark, where the model leaves text as it is and has byte pieces."""
        ids = [self.processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE_MARK.encode()]
        probe = "  \uff46\ufb01 \t\n x  "  # runs of spaces, and characters that NFKC would rewrite
        unchanged = self.processor.decode(self.processor.encode(probe)) == probe
        unprefixed = not self.processor.encode("x", out_type=str)[0].startswith(_SPACE_MARK)
        return ids if unchanged and unprefixed and all(map(self.processor.is_byte, ids)) else None

    def encode(self, text: str) -> list[int]:
        if self._space_mark_ids is None or _SPACE_MARK not in text:
            ids: list[int] = self.processor.encode(text)
            return ids
        first: list[int]
        first, *others = self.processor.encode(text.split(_SPACE_MARK))
        return first + [id for part in others for id in (*self._space_mark_ids, *part)]

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = iter(self._encode_plain([text for text in texts if _SPACE_MARK not in text]))
        return [np.array(self.encode(text), np.uint32) if _SPACE_MARK in text else next(encoded) for text in texts]

    def _encode_plain(self, texts: Sequence[str]) -> list[np.ndarray]:
        if threads() == 1:  # one by one the ids never become Python's numbers, which takes as long as finding them
            encoded = [self.processor.encode_as_numpy(text) for text in texts]
        else:
            encoded = self.processor.encode_as_numpy(list(texts), num_threads=threads())
        return [ids.view(np.uint32) for ids in encoded]

    def decode(self, ids: Iterable[int]) -> str:
        return str(self.processor.decode(list(map(int, ids))))

    def save(self, folder: Path) -> None:
        _write_kind(folder, {"kind": "sentencepiece"} | ends_only(self.ends))
        (folder / _MODEL_FILE).write_bytes(self.model)


class HuggingFaceTokenizer:
    """The `tokenizer.json` of a Hugging Face folder, run by the `tokenizers` library that transformers runs it by."""

    def __init__(self, folder: Path, ends: EndsOptions = _USUAL_ENDS) -> None:
        import tokenizers  # here, because only this kind needs it

        self.folder = folder
        contents = [_read(folder / name) for name in _HUGGING_FACE_FILES]
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(contents[0].decode())
            config: dict[str, Any] = json.loads(contents[1])
            own = self._id(config.get("bos_token")), self._id(config.get("eos_token"))
            self.vocab_size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"data.tokenizer.path: '{folder}' holds no readable fast tokenizer: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        self.bos_id, self.eos_id = ends_of(own, ends, self._special_id, f"'{folder}'")
        self.ends, self.ends_texts = ends, ends.add_eos_token
        model: Any = self._tokenizer.model  # which alone decides; the configuration may call anything its unk_token
        unk = (
            self._id(model.unk_token) if hasattr(model, "unk_token") else json.loads(contents[0])["model"].get("unk_id")
        )
        self.unk_id = None if unk in (self.bos_id, self.eos_id) else unk
        self.fingerprint = fingerprint_of(contents, own, self)

    def __reduce__(self) -> tuple[type[HuggingFaceTokenizer], tuple[Path, EndsOptions]]:
        # The library's own pickling forgets that special tokens are text.
        return HuggingFaceTokenizer, (self.folder, self.ends)

    def _special_id(self, token: str) -> int | None:
        special = (id for id, added in self._tokenizer.get_added_tokens_decoder().items() if added.special)
        return next((id for id in special if self._tokenizer.id_to_token(id) == token), None)

    def _id(self, token: str | dict[str, Any] | None) -> int | None:
        content = token["content"] if isinstance(token, dict) else token
        return None if content is None else self._tokenizer.token_to_id(content)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.frombuffer(array("I", encoding.ids), dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        return self._tokenizer.decode(list(map(int, ids)), skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        _write_kind(folder, {"kind": "huggingface"} | ends_only(self.ends))
        for path in [*(self.folder / name for name in _HUGGING_FACE_FILES), *self.folder.glob("chat_template*")]:
            shutil.copyfile(path, folder / path.name)


def existing_tokenizer(options: TokenizerOptions) -> Tokenizer | None:
    """The tokenizer that the options name, or None where it must be trained first.

    Raises:
        UserError: a file is missing or is not what its kind says.
    """
    if isinstance(options, BytesOptions):
        return BytesTokenizer(options.add_eos_token)
    if isinstance(options, NumbersOptions):
        return NumbersTokenizer(options.size)
    if isinstance(options, HuggingFaceOptions):
        return HuggingFaceTokenizer(options.path, options)
    if options.path is not None:
        return SentencePieceTokenizer(_read(options.path), f"data.tokenizer.path: '{options.path}'", options)
    return None


def declared_vocab_size(options: TokenizerOptions) -> int:
    """The vocabulary size that the options promise, without training or reading any source."""
    tokenizer = existing_tokenizer(options)
    if tokenizer is not None:
        return tokenizer.vocab_size
    assert isinstance(options, SentencePieceOptions)
    assert options.vocab_size is not None
    return options.vocab_size


def load_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer that `save` wrote."""
    described = json.loads(_read(folder / _KIND_FILE))
    kind = described["kind"]
    if kind == "bytes":
        return BytesTokenizer(described.get("add_eos_token", True))
    ends = EndsOptions.model_validate({name: described[name] for name in EndsOptions.model_fields if name in described})
    if kind == "sentencepiece":
        return SentencePieceTokenizer(_read(folder / _MODEL_FILE), f"'{folder / _MODEL_FILE}'", ends)
    if kind == "numbers":
        return NumbersTokenizer(described["size"])
    if kind == "huggingface":
        return HuggingFaceTokenizer(folder, ends)
    raise UserError(f"'{folder / _KIND_FILE}' names an unknown tokenizer kind '{kind}'.")


def _write_kind(folder: Path, described: dict[str, Any]) -> None:
    (folder / _KIND_FILE).write_text(json.dumps(described))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"data.tokenizer.path: '{path}' cannot be read: {error.strerror}.") from error
