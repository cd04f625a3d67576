import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm.train.format import duration, short_number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (213, "213"),
        (12345, "12.3K"),
        (999_999, "1.00M"),
        (9_800_000, "9.80M"),
        (1.3e9, "1.30B"),
        (2.5e15, "2500T"),
        (-1500, "-1.50K"),
        (0.25, "0.25"),
        (3.14159, "3.14"),
        (float("nan"), "nan"),
    ],
)
def test_short_numbers(value: float, text: str) -> None:
    assert short_number(value) == text


@given(st.floats(min_value=1, max_value=1e14))
def test_short_numbers_keep_three_digits(value: float) -> None:
    text = short_number(value)
    factor = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1], 1)
    assert float(text.rstrip("KMBT")) * factor == pytest.approx(value, rel=0.0051)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (3.21, "3.2 s"), (9.97, "0:10"), (83.6, "1:24"), (3600, "1:00:00"), (3723, "1:02:03")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
