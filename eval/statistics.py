"""How sure a score is, and whether two scores differ: intervals and exact paired tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Z95 = 1.959963984540054
"""The standard normal's 97.5 % point: every interval here covers 95 %."""
ROUNDS, DRAWS = 20, 500


@dataclass(frozen=True)
class Estimate:
    """A mean score and its 95 % interval [low, high].

    standard_error: of the mean. interval: the method, `wilson` where every score is 0 or 1.
    """

    mean: float
    n: int
    standard_error: float
    low: float
    high: float
    interval: Literal["wilson", "normal"]


def estimate(scores: Sequence[float]) -> Estimate:
    """The mean of scores in [0, 1], at least one of them.

    Scores that are all 0 or 1 get Wilson's interval, which has a width even where all agree; others mean +- 1.96
    standard errors, cut at 0 and 1 (a single one: all of [0, 1]).
    """
    values, n = np.asarray(scores, dtype=np.float64), len(scores)
    mean = float(values.mean())
    deviation = float(values.std(ddof=1)) if n > 1 else math.inf
    if set(values.tolist()) <= {0.0, 1.0}:
        low, high = wilson(int(values.sum()), n)
        return Estimate(mean, n, math.sqrt(mean * (1 - mean) / n), low, high, "wilson")
    error = min(deviation / math.sqrt(n), 1.0)
    return Estimate(mean, n, error, max(0.0, mean - Z95 * error), min(1.0, mean + Z95 * error), "normal")


def percent(found: Estimate) -> str:
    """`93.0 [86.3, 96.6]`: mean and interval, as percentages."""
    return f"{100 * found.mean:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion: the p with |p - share| <= z se(p) (J. Am. Stat. Assoc. 22, 1927)."""
    share, square = successes / n, Z95**2 / n
    centre = (share + square / 2) / (1 + square)
    half = Z95 / (1 + square) * math.sqrt(share * (1 - share) / n + square / (4 * n))
    # Rounding must not put the share itself, 0 or 1 say, outside.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


@dataclass(frozen=True)
class Paired:
    """Scores of two models on the same samples.

    difference: mean of second - first; [low, high]: its 95 % interval by resampling the pairs.
    better, worse: samples on which the second scored higher or lower. p: two-sided, of the exact `test`.
    """

    difference: float
    low: float
    high: float
    better: int
    worse: int
    p: float
    test: Literal["McNemar exact", "sign test"]


def compare_paired(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Paired:
    """Compares scores of the same samples in the same order, at least one.

    The exact sign test asks whether samples that differ favour one side; where scores are 0 or 1 that is McNemar's.
    """
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    better, worse = int((differences > 0).sum()), int((differences < 0).sum())
    binary = {*first, *second} <= {0.0, 1.0}
    low, high = bootstrap(differences, seed)
    test: Literal["McNemar exact", "sign test"] = "McNemar exact" if binary else "sign test"
    return Paired(float(differences.mean()), low, high, better, worse, sign_test(better, worse), test)


def sign_test(better: int, worse: int) -> float:
    """The two-sided p of `better` against `worse` under a fair coin (McNemar's exact test, for discordant pairs)."""
    n = better + worse
    tail = sum(math.comb(n, k) for k in range(min(better, worse) + 1))
    return min(1.0, tail / 2 ** (n - 1)) if n else 1.0


def bootstrap(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean of values [n] float64, over ROUNDS * DRAWS resamples."""
    random, n = np.random.default_rng(seed), len(values)
    means = [values[random.integers(n, size=(DRAWS, n))].mean(axis=1) for _ in range(ROUNDS)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
