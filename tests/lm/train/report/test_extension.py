import math
from html.parser import HTMLParser

import pytest

from lm.train.before_after import AFTER, BEFORE, CONTROL, ROPE_ONLY, BeforeAfter, Cost, Figure, Measured
from lm.train.report.extension import extension_section

SETTINGS = {"context": 8192, "target_length": 16384, "last_k": 256, "windows": 4}


def figures(loss: float, share: float) -> tuple[Figure, ...]:
    lengths = (4096, 16384)
    return (
        *(Figure("last_tokens", length, loss, 0.01, 4) for length in lengths),
        *(Figure("window_mean", length, loss + 0.1, None, 1) for length in lengths),
        *(Figure("passkey", length, share, None, 1, depth) for length in lengths for depth in (0.0, 0.5)),
    )


COST = Cost("shifted_short", 100, 460_800, 134_976_000, 1234.5, 3 << 30)
FOUND = BeforeAfter(
    SETTINGS,
    {
        BEFORE: Measured("a", figures(math.inf, 0.0)),
        ROPE_ONLY: Measured("b", figures(math.log(40.0), 0.25)),
        AFTER: Measured("c", figures(math.log(5.0), 1.0), COST),
        CONTROL: Measured("d", figures(math.log(4.9), 1.0)[:1], Cost("full", 100, 1, 2, None, None)),
    },
)


def words(html: str) -> str:
    parts: list[str] = []
    parser = HTMLParser()
    parser.handle_data = parts.append  # type: ignore[method-assign]
    parser.feed(html)
    return " ".join(parts)


def test_a_comparison_is_the_same_after_reading() -> None:
    assert BeforeAfter.from_json(FOUND.to_json()) == FOUND
    with pytest.raises(KeyError):
        BeforeAfter.from_json({"settings": {}})


def test_gain_and_cost_are_said_of_each_model() -> None:
    said = words(extension_section(FOUND))
    assert "From 8,192 to 16,384 tokens" in said
    assert "at 16,384: inf before, 40 rope only, 5 after." in said  # the control was not measured there yet
    assert "5 ± 0.05" in said
    assert "shifted-short 100 460,800 134,976,000 1.23K 3 GiB" in said
    for name in (BEFORE, ROPE_ONLY, AFTER):
        assert f"Passkey found: {name}" in said
    assert f"Passkey found: {CONTROL}" not in said


def test_a_measurement_under_way_shows_what_is_there() -> None:
    assert extension_section(None) == ""
    assert extension_section(BeforeAfter(SETTINGS, {BEFORE: Measured("a")})) == ""
    section = extension_section(BeforeAfter(SETTINGS, {BEFORE: Measured("a", figures(2.0, 0.5)[4:])}))
    assert "Passkey found: before" in section
    assert "window mean" not in section


def test_what_is_missing_is_listed_in_order() -> None:
    model = FOUND.models[CONTROL]
    wanted = [figure.key for figure in FOUND.models[AFTER].figures]
    assert model.lacks(wanted) == wanted[1:]
    shuffled = Measured("e", FOUND.models[AFTER].figures[::-1])
    assert [(figure.length, figure.depth) for figure in shuffled.of("passkey")] == [
        (4096, 0.0),
        (4096, 0.5),
        (16384, 0.0),
        (16384, 0.5),
    ]
