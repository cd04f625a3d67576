from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.statistics import Z95, bootstrap, compare_paired, estimate, percent, sign_test, wilson

COINS = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=60)


@given(scores=COINS)
@settings(deadline=None)
def test_the_ends_of_wilsons_interval_solve_its_equation(scores: list[float]) -> None:
    found = estimate(scores)
    share = sum(scores) / len(scores)
    assert found.interval == "wilson"
    assert found.mean == pytest.approx(share)
    assert found.low <= found.mean <= found.high
    for end in (found.low, found.high):
        if 1e-9 < end < 1 - 1e-9:
            assert abs(share - end) == pytest.approx(Z95 * math.sqrt(end * (1 - end) / len(scores)))


def test_wilsons_interval_of_published_examples() -> None:
    # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(successes, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_other_scores_get_mean_and_standard_error() -> None:
    found = estimate([0.0, 0.25, 0.5, 1.0])
    error = np.std([0.0, 0.25, 0.5, 1.0], ddof=1) / 2
    assert (found.mean, found.interval, found.n) == (0.4375, "normal", 4)
    assert found.standard_error == pytest.approx(error)
    assert (found.low, found.high) == (pytest.approx(0.4375 - Z95 * error), pytest.approx(0.4375 + Z95 * error))
    assert percent(estimate([0.5])) == "50.0 [0.0, 100.0]"


@given(signs=st.lists(st.sampled_from([-1, 1]), max_size=9))
@settings(deadline=None)
def test_the_exact_test_counts_what_fair_coins_would_give(signs: list[int]) -> None:
    better, worse = signs.count(1), signs.count(-1)
    tosses = [sum(toss) for toss in itertools.product((-1, 1), repeat=len(signs))]
    expected = sum(abs(toss) >= abs(better - worse) for toss in tosses) / len(tosses)
    assert sign_test(better, worse) == pytest.approx(expected)


def test_mcnemars_exact_p_in_closed_form() -> None:
    # 1 against 9 discordant pairs: 2 (1 + 10) / 2**10.
    first = [1.0] + [0.0] * 9 + [1.0] * 20
    second = [0.0] + [1.0] * 9 + [1.0] * 20
    found = compare_paired(first, second)
    assert (found.test, found.better, found.worse) == ("McNemar exact", 9, 1)
    assert found.p == pytest.approx(22 / 1024)
    assert found.difference == pytest.approx(8 / 30)
    assert found.low < found.difference < found.high


def test_equal_models_do_not_differ_and_other_scores_are_tested_by_sign() -> None:
    same = compare_paired([0.0, 1.0], [0.0, 1.0])
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)
    assert compare_paired([0.25, 1.0], [0.5, 1.0]).test == "sign test"


def test_the_bootstrap_interval_is_the_normal_one_where_there_are_many_and_repeats_itself() -> None:
    values = np.random.default_rng(1).normal(0.3, 1.0, 2000)
    low, high = bootstrap(values)
    error = values.std() / math.sqrt(len(values))
    assert (low, high) == bootstrap(values)
    assert low == pytest.approx(values.mean() - Z95 * error, abs=error / 10)
    assert high == pytest.approx(values.mean() + Z95 * error, abs=error / 10)
