"""A run's tokenizer as a Hugging Face fast tokenizer: the same ids for every text, with nothing but transformers.

SentencePiece marks spaces by another character; here the pieces are spelled with spaces instead, so that text needs no
rewriting on the way in or out. A text becomes `[bos] text`, as a document begins in training. A `</s>` that stands in
a text is characters, as in training, too (`split_special_tokens`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from lm.data.sentencepiece_model import model_type
from lm.data.tokenizers import (
    BytesTokenizer,
    HuggingFaceTokenizer,
    NumbersTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
)
from lm.errors import UserError
from lm.hf.loading import from_pretrained

_SPACE_MARK = "\u2581"
_NUMBERS = ("", "0 3", " 1\n\t2  0 ")
_PROBES = ("", "x", "  \uff46\ufb01 \t\n x  ", "</s><s><unk><0x41>", "\u2581 \u2581", "\u00e9\U0001f600\x00\u0301")


def save_fast_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json into `folder`; a Hugging Face tokenizer is copied as it is.

    max_length: tokens that the model was trained on at once.

    Raises:
        UserError: a SentencePiece model that was not trained here rewrites text in ways of its own.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        for path in _tokenizer_files(tokenizer.folder):
            shutil.copyfile(path, folder / path.name)
        return
    names = {tokenizer.bos_id: "<s>", tokenizer.eos_id: "</s>"}
    if isinstance(tokenizer, BytesTokenizer):
        backend = _bytes_backend()
    elif isinstance(tokenizer, NumbersTokenizer):
        backend = _numbers_backend(tokenizer.size)
    else:
        assert isinstance(tokenizer, SentencePieceTokenizer)
        backend, names = _sentencepiece_backend(tokenizer), _control_names(tokenizer)
    backend.post_processor = _begin_with(names[tokenizer.bos_id], tokenizer.bos_id)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=names[tokenizer.bos_id],
        eos_token=names[tokenizer.eos_id],
        pad_token=names[tokenizer.eos_id],
        padding_side="left",
        model_max_length=max_length,
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )
    _require_same(fast, tokenizer, _NUMBERS if isinstance(tokenizer, NumbersTokenizer) else _PROBES)
    fast.save_pretrained(folder)


def fast_tokenizer(tokenizer: Tokenizer, max_length: int) -> PreTrainedTokenizerBase:
    """What `save_fast_tokenizer` writes, read again. Raises UserError where it is code that comes with the folder."""
    with TemporaryDirectory() as folder:
        save_fast_tokenizer(tokenizer, Path(folder), max_length)
        fast: PreTrainedTokenizerBase = from_pretrained(AutoTokenizer, folder)
        return fast


def _tokenizer_files(folder: Path) -> Iterator[Path]:
    for pattern in ("*token*.json", "chat_template*", "vocab.*", "merges.txt"):
        yield from folder.glob(pattern)


def _bytes_backend() -> Backend:
    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
    backend = Backend(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


def _numbers_backend(size: int) -> Backend:
    backend = Backend(models.WordLevel({str(number): number for number in range(size)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<s>", "</s>"])
    return backend


def _sentencepiece_backend(tokenizer: SentencePieceTokenizer) -> Backend:
    processor = tokenizer.processor
    pieces = [processor.id_to_piece(id).replace(_SPACE_MARK, " ") for id in range(tokenizer.vocab_size)]
    scores = {
        piece: processor.get_score(id)
        for id, piece in enumerate(pieces)
        if not (processor.is_byte(id) or processor.is_control(id) or processor.is_unknown(id))
    }
    spelled = any(map(processor.is_byte, range(tokenizer.vocab_size)))
    kind = model_type(tokenizer.model)
    if kind == "unigram":
        backend = Backend(_unigram(pieces, scores, processor.unk_id(), spelled))
        if strangers := {letter for piece in pieces if piece not in scores for letter in piece} - scores.keys():
            # Unknown letters stand alone in every cut; said here, no control piece can be found around them.
            pattern = "[" + "".join(sorted(map(re.escape, strangers))) + "]"
            backend.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    elif kind == "bpe":
        backend = Backend(_bpe(pieces, scores, pieces[processor.unk_id()], spelled))
    else:
        raise UserError("only unigram and bpe SentencePiece models have a Hugging Face form; this one is neither.")
    if not spelled:
        backend.normalizer = normalizers.Replace(_SPACE_MARK, " ")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return backend


def _unigram(pieces: list[str], scores: dict[str, float], unknown: int, spelled: bool) -> models.Unigram:
    # SentencePiece finds only scored pieces in text. Here all are looked for, so the others must never be worth it.
    longest = max(len(piece) for piece in pieces if piece not in scores)
    never = 2 * longest * min(scores.values())
    vocab = [(piece, scores.get(piece, never)) for piece in pieces]
    return models.Unigram(vocab, unk_id=unknown, byte_fallback=spelled)


def _bpe(pieces: list[str], scores: dict[str, float], unknown: str, spelled: bool) -> models.BPE:
    # Where halves can be joined to a piece in several ways all of them are merges, in the order of the pieces.
    merges = [
        (piece[:at], piece[at:])
        for piece in sorted(scores, key=lambda piece: -scores[piece])
        for at in range(1, len(piece))
        if piece[:at] in scores and piece[at:] in scores
    ]
    vocab = {piece: id for id, piece in enumerate(pieces)}
    return models.BPE(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=spelled)


def _control_names(tokenizer: SentencePieceTokenizer) -> dict[int, str]:
    return {id: tokenizer.processor.id_to_piece(id) for id in (tokenizer.bos_id, tokenizer.eos_id)}


def _begin_with(name: str, id: int) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=[name, "$A"], pair=[name, "$A", "$B"], special_tokens=[(name, id)])


def _require_same(fast: PreTrainedTokenizerFast, tokenizer: Tokenizer, probes: Sequence[str]) -> None:
    for probe in probes:
        if fast(probe).input_ids != [tokenizer.bos_id, *tokenizer.encode(probe)]:
            raise UserError(
                "this SentencePiece model rewrites text in a way of its own (normalization, an added space), which "
                "has no exact Hugging Face form. Train with {kind: huggingface} and the folder that belongs to it."
            )
