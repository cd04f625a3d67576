from __future__ import annotations

import io
import random

import pytest
import sentencepiece

from lm.data.sentencepiece_model import SCORE_STEP, model_type, round_scores


def trained(kind: str) -> bytes:
    words = [random.Random(index).choice(["cab", "bad", "deed", "add"]) for index in range(500)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(words[at : at + 9]) for at in range(490)]),
        model_writer=model,
        vocab_size=8 if kind == "char" else 20,
        model_type=kind,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


def pieces_of(model: bytes) -> dict[tuple[int, str], float]:
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    return {(id, processor.id_to_piece(id)): processor.get_score(id) for id in range(processor.get_piece_size())}


@pytest.mark.parametrize(("kind", "found"), [("unigram", "unigram"), ("bpe", "bpe"), ("char", "other")])
def test_model_type(kind: str, found: str) -> None:
    assert model_type(trained(kind)) == found


def test_only_scores_are_rounded_and_to_the_nearest_step() -> None:
    before, after = pieces_of(trained("unigram")), pieces_of(round_scores(trained("unigram")))
    assert after.keys() == before.keys()
    assert any(after[piece] != score for piece, score in before.items())
    assert all(abs(after[piece] - score) <= SCORE_STEP / 2 for piece, score in before.items())
    assert all(score % SCORE_STEP == 0 for score in after.values())


def test_ranks_of_bpe_pieces_stay() -> None:
    assert pieces_of(round_scores(trained("bpe"))) == pieces_of(trained("bpe"))
