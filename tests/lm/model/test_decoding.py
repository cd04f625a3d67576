"""Decoding from a cache gives what the parallel forward gives, however the tokens are fed."""

from __future__ import annotations

import pytest
import torch

from lm.model.documents import Documents

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
TOKENS = 23


def row(seed=0, length=TOKENS):
    return torch.randint(0, 23, (length,), generator=torch.Generator().manual_seed(seed))


def feed(model, rows, pieces, dtype):
    """Feeds the rows in pieces, a list of token counts per row each; returns each row's logits."""
    cache = model.model.new_cache(len(rows), dtype, torch.device("cpu"))
    done = [0] * len(rows)
    logits = [[] for _ in rows]
    for counts in pieces:
        tokens = torch.cat([r[d : d + c] for r, d, c in zip(rows, done, counts, strict=True)])
        out = model(tokens, Documents.from_lengths(counts, past=cache.seen), cache=cache)
        for index, piece in enumerate(out.split(counts)):
            logits[index].append(piece)
            done[index] += counts[index]
    return [torch.cat(pieces) for pieces in logits], cache


@pytest.fixture
def check(new_model):
    def run(pattern, lengths, pieces, dtype=torch.float64, **changes):
        model = new_model(pattern, dtype, **changes).eval()
        rows = [row(seed, length) for seed, length in enumerate(lengths)]
        with torch.no_grad():
            decoded, cache = feed(model, rows, pieces, dtype)
            for tokens, logits in zip(rows, decoded, strict=True):
                parallel = model(tokens, Documents.from_lengths([len(tokens)]))
                torch.testing.assert_close(logits, parallel, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        return model, cache

    return run


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_token_by_token_from_an_empty_cache(check, pattern_name, dtype):
    check(pattern_name, [TOKENS], [[1]] * TOKENS, dtype, initializer_range=0.2)


@pytest.mark.parametrize("prefill", [0, 1, 2, 3, 4, 5, 6, 7, 16, 22])
def test_token_by_token_after_a_prefill(check, pattern_name, prefill):
    check(pattern_name, [TOKENS], [[prefill]] * (prefill > 0) + [[1]] * (TOKENS - prefill))


@pytest.mark.parametrize("chunk", [2, 3, 5, 8])
def test_chunked_prefill(check, pattern_name, chunk):
    pieces = [[min(chunk, TOKENS - done)] for done in range(0, TOKENS, chunk)]
    check(pattern_name, [TOKENS], pieces)


def test_ragged_rows_prefilled_together_then_stepped(check, pattern_name):
    check(pattern_name, [12, 19, 9], [[4, 11, 1]] + [[1, 1, 1]] * 8)


def test_rows_may_pause(check, pattern_name):
    pieces = [[3, 0, 5], [0, 2, 1], [1, 1, 1], [4, 0, 0], [1, 1, 1], [0, 6, 3]]
    lengths = [sum(piece[row] for piece in pieces) for row in range(3)]
    check(pattern_name, lengths, pieces)


def test_the_cache_takes_the_bytes_its_mixers_state(check, pattern_name):
    for tokens in (1, 7, TOKENS):
        model, cache = check(pattern_name, [tokens], [[tokens]])
        stated = [layer.cache_bytes(tokens, torch.float64) for layer in model.model.blocks]
        assert [layer.used_bytes for layer in cache.layers] == stated


def test_rows_can_be_reordered_as_beams_are(new_model, pattern_name):
    model = new_model(pattern_name).eval()
    rows = [row(seed, 9) for seed in range(3)]
    order = torch.tensor([2, 0, 0, 1])
    with torch.no_grad():
        _, cache = feed(model, rows, [[9, 9, 9]], torch.float64)
        cache.reorder(order)
        tokens = row(7, 4)
        for step in range(3):
            stepped = model((tokens + step) % 23, Documents.from_lengths([1] * 4, past=cache.seen), cache=cache)
        for beam, source in enumerate(order.tolist()):
            fed = torch.cat((rows[source], (tokens[beam] + torch.arange(3)) % 23))
            whole = model(fed, Documents.from_lengths([12]))
            torch.testing.assert_close(stepped[beam], whole[-1], atol=1e-10, rtol=1e-10)


def test_a_row_cut_back_goes_on_and_the_others_stay(new_model, pattern_name):
    """Or the cut is refused, by a layer that cannot always be cut."""
    model = new_model(pattern_name).eval()
    rows, cut = [row(0, 9), row(1, 11)], [8, 11]
    with torch.no_grad():
        _, cache = feed(model, rows, [[9, 11]], torch.float64)
        try:
            model.model.crop(cache, torch.tensor(cut))
        except ValueError:
            assert not all(layer.croppable for layer in model.model.blocks)
            return
        stated = [sum(layer.cache_bytes(tokens, torch.float64) for tokens in cut) for layer in model.model.blocks]
        assert [layer.used_bytes for layer in cache.layers] == stated
        more = row(2, 3)
        logits = model(more.repeat(2), Documents.from_lengths([3, 3], past=cache.seen), cache=cache)
        for fed, tokens, kept in zip(logits.split(3), rows, cut, strict=True):
            whole = model(torch.cat((tokens[:kept], more)), Documents.from_lengths([kept + 3]))
            torch.testing.assert_close(fed, whole[-3:], atol=1e-10, rtol=1e-10)


def test_bfloat16_steps_stay_near_the_parallel_forward(new_model, pattern_name):
    model = new_model(pattern_name, torch.bfloat16, initializer_range=0.1).eval()
    rows = [row(0)]
    with torch.no_grad():
        (decoded,), _ = feed(model, rows, [[1]] * TOKENS, torch.bfloat16)
        parallel = model(rows[0], Documents.from_lengths([TOKENS]))
    assert (decoded.float() - parallel.float()).norm() < 2e-2 * parallel.float().norm()
