"""The few fields of a serialized SentencePiece model that its library neither tells nor changes.

The numbers are those of `sentencepiece_model.proto`: a model's pieces are field 1 and its trainer's settings field 2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Literal

SCORE_STEP = 1 / 8
_PIECE, _TRAINER = 1, 2
_SCORE = 2
_MODEL_TYPE = 3
_UNIGRAM, _BPE = 1, 2


def round_scores(model: bytes) -> bytes:
    """The same model with every score rounded to a multiple of SCORE_STEP.

    A unigram model takes the cut of a text with the highest sum of scores, and SentencePiece adds them in float32. Sums
    of such scores are exact there for about a megabyte of text, so how a word is cut does not depend on what stands
    before it, and other implementations, which add in float64, cut alike. Trained scores are estimates that reach from
    about -3 to -12; rounded ones spend the same number of tokens within a few in 100,000.
    """
    rounded = bytearray(model)
    for piece, begin, end in _fields(model, 0, len(model)):
        if piece == _PIECE:
            for field, at, _ in _fields(model, begin, end):
                if field == _SCORE:
                    (score,) = struct.unpack_from("<f", model, at)
                    struct.pack_into("<f", rounded, at, round(score / SCORE_STEP) * SCORE_STEP)
    return bytes(rounded)


def model_type(model: bytes) -> Literal["unigram", "bpe", "other"]:
    """What kind of model this is."""
    kind = _UNIGRAM  # the default, which need not be written
    for section, begin, end in _fields(model, 0, len(model)):
        if section == _TRAINER:
            for field, at, _ in _fields(model, begin, end):
                if field == _MODEL_TYPE:
                    kind = _varint(model, at)[0]
    return "unigram" if kind == _UNIGRAM else "bpe" if kind == _BPE else "other"


def _fields(message: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(number, begin, end) of each field's value in the protobuf message `message[at:end]`."""
    while at < end:
        key, at = _varint(message, at)
        begin, wire = at, key & 7
        if wire == 0:
            at = _varint(message, at)[1]
        elif wire == 2:
            size, begin = _varint(message, at)
            at = begin + size
        else:
            at += 4 if wire == 5 else 8
        yield key >> 3, begin, at


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
