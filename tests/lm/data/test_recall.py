"""Generated rows against what their tasks say, read token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lm.data.batches import Batches
from lm.data.options import DataOptions
from lm.data.order import SequentialOrder
from lm.data.prepare import Prepared, prepare
from lm.data.recall import GeneratedRows
from lm.data.recall_options import CopyOptions, GeneratedOptions, MqarOptions, ParityOptions
from lm.data.rows import IGNORED

MQAR = {"kind": "mqar", "pairs": 3}


def row_of(
    options: GeneratedOptions, numbers: int, length: int, row: int = 0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    tokens, targets = np.empty((2, length), dtype=np.int64)
    rows = GeneratedRows(options, numbers, length, seed, 0, 2**40)
    assert rows.fill(row, tokens, targets) == [(row, length, 0)]
    return tokens, targets


def prepared(**changes: Any) -> Prepared:
    data = {"tokenizer": {"kind": "numbers", "size": 16}, "sources": [MQAR], "sequence_length": 16}
    return prepare(DataOptions.model_validate(data | changes))


@settings(deadline=None, max_examples=60)
@given(
    pairs=st.integers(1, 9),
    spare=st.integers(0, 40),
    numbers=st.integers(20, 99),
    alpha=st.sampled_from([0.01, 1.0, 8.0]),
    fillers=st.sampled_from(["random", "zero"]),
    seed=st.integers(0, 2**63 - 1),
)
def test_every_mqar_query_is_answered_by_the_first_mention_of_its_key(
    pairs: int, spare: int, numbers: int, alpha: float, fillers: Any, seed: int
) -> None:
    options = MqarOptions(kind="mqar", pairs=pairs, alpha=alpha, fillers=fillers)
    length = 4 * pairs + spare
    tokens, targets = row_of(options, numbers, length, seed=seed)
    keys, values = tokens[0 : 2 * pairs : 2].tolist(), tokens[1 : 2 * pairs : 2].tolist()
    assert len({*keys}) == len({*values}) == pairs
    assert all(1 <= key < numbers // 2 for key in keys)
    assert all(numbers // 2 <= value < numbers for value in values)
    queries = np.flatnonzero(targets != IGNORED)
    assert sorted(tokens[queries].tolist()) == sorted(keys)
    assert all(place >= 2 * pairs and place % 2 == 0 for place in queries)
    for place in queries:
        first = tokens.tolist().index(tokens[place])
        assert targets[place] == tokens[first + 1]
    others = np.setdiff1d(np.arange(2 * pairs, length), queries)
    assert (tokens[others] < numbers).all()
    assert (tokens[others] >= 0).all()
    assert fillers == "random" or not tokens[others].any()


@pytest.mark.parametrize("alpha", [0.3, 1.0, 4.0])
def test_gaps_have_their_weights(alpha: float) -> None:
    options, slots, count = MqarOptions(kind="mqar", pairs=2, alpha=alpha), 5, 4000
    weights = np.arange(1, slots + 1) ** (alpha - 1)
    weights /= weights.sum()
    drawn = np.zeros((slots, slots))
    for row in range(count):
        tokens, targets = row_of(options, 20, 4 + 2 * slots, row)
        first, second = ((np.flatnonzero((targets == value))[0] - 4) // 2 for value in tokens[[1, 3]])
        drawn[first, second] += 1 / count
    expected = np.array(
        [[0 if i == j else a * b / (1 - a) for j, b in enumerate(weights)] for i, a in enumerate(weights)]
    )
    assert np.abs(drawn - expected).max() < 0.025  # more than three standard errors of any share


@settings(deadline=None, max_examples=40)
@given(length=st.integers(2, 9), gap=st.integers(0, 9), lead=st.integers(0, 9), row=st.integers(0, 2**40))
def test_a_copy_is_what_stood_at_its_distance(length: int, gap: int, lead: int, row: int) -> None:
    distance, total = length + gap, lead + 2 * length + gap
    tokens, targets = row_of(CopyOptions(kind="copy", length=length, distance=distance), 40, total, row)
    begin = total - length
    assert tokens[begin:].tolist() == tokens[begin - distance : total - distance].tolist()
    assert len({*tokens[:begin].tolist()}) == begin
    assert targets[begin:-1].tolist() == tokens[begin + 1 :].tolist()
    assert (np.delete(targets, np.arange(begin, total - 1)) == IGNORED).all()
    if not lead:
        first, _ = row_of(CopyOptions(kind="copy", length=length), 40, total, row)
        assert first.tolist() == tokens.tolist()


def test_parity_counts_the_ones() -> None:
    tokens, targets = row_of(ParityOptions(kind="parity"), 4, 50)
    assert {*tokens.tolist()} == {0, 1}
    assert targets.tolist() == [sum(tokens[: at + 1]) % 2 for at in range(50)]


def test_a_row_depends_on_nothing_but_its_number() -> None:
    data = prepared()
    whole = data.train.rows([5, 2**39, 5, 6])
    for at, index in enumerate([5, 2**39, 5, 6]):
        alone = data.train.rows([index])
        assert alone.tokens[0].equal(whole.tokens[at])
        assert alone.targets[0].equal(whole.targets[at])
    assert not whole.tokens[0].equal(whole.tokens[3])
    assert whole.lengths == [16] * 4


def test_seeds_and_sources_give_other_rows_and_held_out_rows_are_rows_of_their_own() -> None:
    data = prepared(sources=[MQAR | {"held_out_rows": 40}, MQAR | {"held_out_rows": 3}])
    assert data.validation is not None
    assert data.validation.num_rows == 43
    several = [data.train, prepared(seed=1).train, data.validation.batches]
    several.append(Batches(data.train.sources[1:], SequentialOrder([43])))
    seen = {tuple(row.tolist()) for batches in several for row in batches.rows(range(43)).tokens}
    assert len(seen) == 4 * 43
    assert (
        prepared(seed=1).validation.batches.rows(range(40)).tokens.equal(data.validation.batches.rows(range(40)).tokens)
    )
    assert prepared(sources=[MQAR | {"held_out_rows": 0}]).validation is None


def test_the_fingerprint_names_what_training_reads() -> None:
    same = [prepared(), prepared(sources=[MQAR | {"held_out_rows": 9}]), prepared(validation={"seed": 4})]
    others = [
        prepared(seed=1),
        prepared(sequence_length=17),
        prepared(tokenizer={"kind": "numbers", "size": 18}),
        prepared(sources=[MQAR | {"alpha": 0.5}]),
        prepared(sources=[MQAR, {"kind": "parity"}]),
    ]
    assert len({data.fingerprint for data in same}) == 1
    assert len({data.fingerprint for data in [*same, *others]}) == 1 + len(others)


def test_sources_are_mixed_by_weight() -> None:
    data = prepared(sources=[MQAR | {"weight": 3.0}, {"kind": "parity"}])
    targets = data.train.rows(range(40)).targets
    assert ((targets != IGNORED).all(dim=1)).sum() == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": [{"kind": "mqar", "pairs": 5}]}, r"sources.0: pairs 5 need rows of 20 tokens; they have 16"),
        ({"sources": [{"kind": "mqar", "pairs": 4}], "tokenizer": {"kind": "numbers", "size": 9}}, "need 10 numbers"),
        ({"sources": [{"kind": "copy", "length": 9}]}, "length 9 at a distance of 7 does not fit"),
        ({"sources": [{"kind": "copy", "length": 4, "distance": 13}]}, "does not fit"),
        ({"sources": [{"kind": "copy", "length": 2}], "tokenizer": {"kind": "numbers", "size": 9}}, "leaves 14 tokens"),
        ({"sources": [MQAR, {"path": "python-stdlib"}]}, "do not mix"),
        ({"sources": [{"path": "python-stdlib"}]}, "do not mix"),
        ({"tokenizer": {"kind": "bytes"}}, "tokenizer: kind bytes is for text"),
        ({"validation": {"fraction": 0.5}}, "say held_out_rows themselves"),
        ({"sources": [{"kind": "mqr", "pairs": 3}]}, "'mqar'"),
    ],
)
def test_what_cannot_be_generated_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        prepared(**changes)
