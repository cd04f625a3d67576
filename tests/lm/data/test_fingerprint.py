"""Hashes that decide caches and splits stay what they are."""

from lm.data.fingerprint import content_digest, digest, unit_hash


def test_a_digest_ignores_the_order_of_keys_only() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1, "b": [1, 2]}) != digest({"a": 1, "b": [2, 1]})


def test_a_content_digest_knows_where_parts_end() -> None:
    assert content_digest([b"ab", b"c"]) != content_digest([b"a", b"bc"])


def test_unit_hashes_are_evenly_spread_and_independent_of_purpose() -> None:
    values = [unit_hash(str(number).encode(), "validation", 0) for number in range(5000)]
    assert all(0 <= value < 1 for value in values)
    for fraction in (0.01, 0.5, 0.9):
        share = sum(value < fraction for value in values) / len(values)
        assert abs(share - fraction) < 4 * (fraction * (1 - fraction) / len(values)) ** 0.5
    assert unit_hash(b"x", "validation", 0) != unit_hash(b"x", "validation", 1)
    assert unit_hash(b"x", "validation", 0) != unit_hash(b"x", "sample", 0)
