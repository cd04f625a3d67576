from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from eval.model import Model
from eval.perplexity import (
    BLOCK,
    Perplexity,
    last_tokens,
    loss_by_context,
    over_texts,
    rolling,
    rolling_windows,
    strided,
    strided_windows,
    token_losses,
    window_mean,
)
from eval.text import Text

BOS = 256


def random_text(tokens: int, seed: int = 0) -> Text:
    """Bytes for tokens, and a word in every fifth."""
    ids = np.random.default_rng(seed).integers(0, 256, tokens)
    return Text(ids, np.ones(tokens, np.int64), (np.arange(tokens) % 5 == 4).astype(np.int64))


TEXTS = [random_text(length, length) for length in (37, 1, 90, 2, 64)]
PLANS = st.integers(1, 40).flatmap(lambda window: st.tuples(st.just(window), st.integers(1, window)))


@settings(deadline=None)
@given(st.integers(0, 120), PLANS)
def test_every_token_but_the_first_is_scored_once_within_its_window(tokens: int, plan: tuple[int, int]) -> None:
    window, stride = plan
    for windows in (list(strided_windows(tokens, window, stride)), list(rolling_windows(tokens, window))):
        scored = [place for part in windows for place in range(part.first, part.end)]
        assert scored == list(range(1, tokens))
        for part in windows:
            assert 0 <= part.begin < part.first < part.end <= part.begin + window + 1
    for part in list(strided_windows(tokens, window, stride))[1:]:
        assert part.first - part.begin == window - stride + 1
    if windows:
        assert windows[-1].end - windows[-1].begin == min(tokens, window + 1)


@settings(deadline=None, max_examples=30)
@given(plan=PLANS)
def test_models_without_memory_give_one_figure_for_all_windows_and_strides(toy: Any, plan: tuple[int, int]) -> None:
    window, stride = plan
    for model in (toy.uniform(256), toy.unigram(), toy.markov()):
        whole = np.concatenate([nll for text in TEXTS for nll in model.token_nll([[BOS, *text.ids]])])
        for found in (strided(model, TEXTS, window, stride, BOS), rolling(model, TEXTS, window, BOS)):
            assert found.nll == pytest.approx(whole.mean())
            assert (found.tokens, found.bytes) == (194, 194)
    ending = strided(toy.markov(), TEXTS, window, stride)
    assert (ending.tokens, ending.units) == (189, 4)


def test_a_uniform_model_over_bytes_needs_eight_bits_for_each(toy: Any) -> None:
    model = toy.uniform(256)
    (last,) = last_tokens(model, TEXTS[:1], [20], 8)
    protocols = [
        strided(model, TEXTS, 16, 8, BOS),
        strided(model, TEXTS, 16, 16),
        rolling(model, TEXTS, 16, BOS),
        window_mean(model, random_text(100), 16, 4),
        last,
    ]
    for found in protocols:
        assert found.perplexity == pytest.approx(256)
        assert found.bits_per_byte == pytest.approx(8)
        assert found.byte_perplexity == pytest.approx(256)
        assert math.log2(found.word_perplexity) == pytest.approx(8 * found.bytes / found.words)


def test_a_smaller_stride_gives_more_context_and_a_window_over_all_is_the_whole_text(toy: Any) -> None:
    text = [random_text(200)]
    figures = [strided(toy.fading(), text, 32, stride).nll for stride in (32, 16, 8, 1)]
    assert figures == sorted(figures, reverse=True)
    (whole,) = toy.fading().token_nll([text[0].ids.tolist()])
    for stride in (1, 50, 200):
        assert strided(toy.fading(), text, 200, stride).nll == pytest.approx(whole.mean())


def test_a_prefix_is_never_doubled(toy: Any) -> None:
    model = toy.markov()
    text = random_text(30)
    begun = text.behind(BOS)
    for texts in ([text], [begun]):
        strided(model, texts, 8, 4, BOS)
        rolling(model, texts, 8, BOS)
    assert sum(row[:1] == [BOS] for row in model.rows) == 4
    assert not any(row[1:2] == [BOS] for row in model.rows)
    assert strided(model, [begun], 8, 4, BOS) == strided(model, [text], 8, 4, BOS)


def test_rolling_rows_are_those_of_the_harness(toy: Any) -> None:
    utils = pytest.importorskip("lm_eval.utils")
    for tokens in (1, 15, 16, 17, 32, 50):
        text = random_text(tokens)
        model = toy.unigram()
        rolling(model, [text], 16, BOS)
        theirs = utils.get_rolling_token_windows(text.ids.tolist(), BOS, 16, 1)
        expected = []
        for context, targets in map(utils.make_disjoint_window, theirs):
            expected.append([*context, *targets])
        assert model.rows == expected


def test_the_window_mean_weighs_a_token_by_the_windows_that_score_it(toy: Any) -> None:
    stride, window = 4, 12
    stream = random_text(window + 6 * stride)
    begins = range(0, len(stream) - window, stride)[:-1]
    weights = np.zeros(len(stream))
    for begin in begins:
        weights[begin + 1 : begin + window] += 1
    nll = np.concatenate(([0], toy.unigram().token_nll([stream.ids.tolist()])[0]))
    found = window_mean(toy.unigram(), stream, window, stride)
    assert found.nll == pytest.approx((nll * weights).sum() / weights.sum())
    assert (found.units, found.unit) == (2, "blocks of 3 windows")
    assert found.tokens == (weights > 0).sum()


def test_fewer_windows_are_spaced_evenly(toy: Any) -> None:
    model = toy.unigram()
    stream = random_text(8 + 4 * 31)
    found = window_mean(model, stream, 8, 4, most=3)
    assert model.rows == [stream.ids[begin : begin + 8].tolist() for begin in (0, 40, 80)]
    assert (found.units, found.unit, found.tokens) == (3, "windows", 21)
    means = [np.mean([0.1 + token % 7 for token in row[1:]]) for row in model.rows]
    assert found.stderr == pytest.approx(np.std(means, ddof=1) / math.sqrt(3))
    assert window_mean(toy.unigram(), stream, 8, 4, most=900).nll == window_mean(toy.unigram(), stream, 8, 4).nll


@pytest.mark.parametrize(("tokens", "windows"), [(16 + 9, 1), (16 + 16, 1), (16 + 17, 2), (16 + 33, 4)])
def test_the_window_mean_leaves_the_last_window_out(tokens: int, windows: int, toy: Any) -> None:
    model = toy.unigram()
    window_mean(model, random_text(tokens), 16, 8)
    assert len(model.rows) == windows
    with pytest.raises(ValueError, match="25 or more"):
        window_mean(model, random_text(24), 16, 8)


def test_last_tokens_are_the_same_at_every_length(toy: Any) -> None:
    texts = [random_text(64, seed) for seed in range(3)]
    model = toy.fading()
    found = last_tokens(model, texts, [9, 16, 64], 8)
    for length, part in zip((9, 16, 64), found, strict=True):
        before = np.arange(length - 8, length)
        assert part.nll == pytest.approx((1 + 1 / before).mean())
        assert (part.tokens, part.units, part.bytes) == (24, 3, 24)
        assert part.protocol == f"last-tokens, 8 of {length}"
    assert {tuple(row[-8:]) for row in model.rows} == {tuple(text.ids[-8:].tolist()) for text in texts}
    same = last_tokens(toy.markov(), texts, [9, 16, 64], 8)
    assert same[0].nll == same[1].nll == same[2].nll
    with pytest.raises(ValueError, match="no context"):
        last_tokens(model, texts, [8], 8)
    with pytest.raises(ValueError, match="65 tokens"):
        last_tokens(model, texts, [65], 8)


def test_loss_by_position_is_told_at_every_place_once(toy: Any) -> None:
    texts = [random_text(80, seed) for seed in range(4)]
    parts = loss_by_context(toy.fading(), texts)
    assert [part.first for part in parts] == [1, *(part.end for part in parts[:-1])]
    assert parts[-1].end == 80
    for part in parts:
        assert part.loss == pytest.approx((1 + 1 / np.arange(part.first, part.end)).mean())
        assert part.stderr == pytest.approx(0)
    assert loss_by_context(toy.unigram(), texts[:1])[0].stderr is None
    with pytest.raises(ValueError, match="one length"):
        loss_by_context(toy.unigram(), TEXTS)


def test_the_standard_error_is_that_of_a_ratio_over_documents(toy: Any) -> None:
    generator = np.random.default_rng(1)

    def sample(seed: int) -> tuple[Perplexity, float]:
        texts = [random_text(int(n), seed * 1000 + k) for k, n in enumerate(generator.integers(5, 60, 40))]
        found = strided(toy.unigram(), texts, 64, 64)
        return found, found.nll

    found = [sample(seed) for seed in range(200)]
    spread = np.std([nll for _, nll in found])
    typical = np.mean([part.stderr for part, _ in found])
    assert typical == pytest.approx(spread, rel=0.15)
    assert strided(toy.unigram(), TEXTS[:1], 8, 8).stderr is None


def test_the_standard_error_of_one_document_is_that_over_its_blocks(toy: Any) -> None:
    text = random_text(4 * BLOCK + 1)
    found = strided(toy.unigram(), [text], 64, 64)
    (nll,) = toy.unigram().token_nll([text.ids.tolist()])
    means = nll.reshape(4, BLOCK).mean(1)
    assert found.stderr == pytest.approx(means.std(ddof=1) / 2)
    assert (found.units, found.unit) == (4, f"blocks of {BLOCK} tokens")
    some = np.arange(4 * BLOCK) < BLOCK  # key tokens, say, that no other block has
    assert over_texts("some", [text], [nll], counted=[some]).stderr is None
    assert strided(toy.unigram(), [random_text(2 * BLOCK)], 64, 64).stderr is None


def test_nothing_to_predict_is_said(toy: Any) -> None:
    with pytest.raises(ValueError, match="no token to predict"):
        strided(toy.unigram(), [random_text(1)], 8, 8)
    with pytest.raises(ValueError, match="stride must be"):
        strided(toy.unigram(), TEXTS, 8, 9)


def test_a_broken_model_shows() -> None:
    class Broken:
        def token_nll(self, rows: list[list[int]]) -> list[NDArray[np.float64]]:
            return [np.full(len(row) - 1, np.nan) for row in rows]

    assert math.isnan(strided(Broken(), TEXTS, 8, 8).perplexity)


def test_a_model_is_read_as_its_whole_logits_say(new_model: Callable[..., Model]) -> None:
    model = new_model("hybrid")
    texts = [random_text(40), random_text(23)]
    found = strided(model, texts, 12, 5, BOS)
    rows = []
    for text in texts:
        ids = [BOS, *text.ids.tolist()]
        for place in range(1, len(ids)):
            begin = next(b for b in range(0, len(ids), 5) if b + 12 >= place)
            rows.append(ids[begin : place + 1])
    assert found.nll == pytest.approx(np.mean([model.token_nll([row])[0][-1] for row in rows]), rel=1e-5)
    whole = token_losses(model, texts, lambda tokens: rolling_windows(tokens, 64))
    np.testing.assert_allclose(whole[0], model.token_nll([texts[0].ids.tolist()])[0], rtol=1e-5)
