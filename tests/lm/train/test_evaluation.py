import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm.train.evaluation import Evaluation, PositionLoss, loss_by_position


@given(
    losses=st.lists(st.floats(0, 20), min_size=1, max_size=300),
    counts=st.lists(st.integers(0, 5), min_size=300, max_size=300),
)
@settings(deadline=None, max_examples=50)
def test_bins_cover_every_position_once_and_keep_the_total(losses: list[float], counts: list[int]) -> None:
    count = np.array(counts[: len(losses)])
    parts = loss_by_position(np.array(losses) * count, count)
    assert sum(part.tokens for part in parts) == count.sum()
    assert sum(part.tokens * part.loss for part in parts) == pytest.approx(float((np.array(losses) * count).sum()))
    covered = [position for part in parts for position in range(part.first, part.end)]
    assert covered == sorted(set(covered))
    assert {int(position) for position in np.flatnonzero(count)} <= set(covered)


def test_bins_widen_with_the_position() -> None:
    parts = loss_by_position(np.ones(1 << 16), np.ones(1 << 16, dtype=np.int64))
    assert [(part.first, part.end) for part in parts[:4]] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert 40 < len(parts) < 70
    assert all(part.end - part.first <= max(2, 0.2 * part.end) for part in parts)


def test_figures_follow_from_the_loss() -> None:
    found = Evaluation(step=1, loss=math.log(16), accuracy=0.5, tokens=100, bytes=200)
    assert found.perplexity == pytest.approx(16)
    assert found.bits_per_byte == pytest.approx(2)
    assert Evaluation(step=1, loss=1e5, accuracy=0.0, tokens=1, bytes=1).perplexity == math.inf


def test_json_and_back() -> None:
    found = Evaluation(3, 1.5, 0.25, 100, 400, (PositionLoss(0, 1, 4.0, 10),), {"gzip -9": 2.0})
    assert Evaluation.from_json(json.loads(json.dumps(found.to_json()))) == found
    with pytest.raises(KeyError):
        Evaluation.from_json({"step": 1})
