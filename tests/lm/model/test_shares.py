"""A stream on several ranks is the stream on one; `shares_script.py` holds what the ranks check."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kernels.exchange import Ranks
from lm.model.documents import Documents
from lm.model.shares import SequenceGroup, choose, even_bounds

SCRIPT = Path(__file__).with_name("shares_script.py")
ROOT = Path(__file__).parents[3]


def group(rank: int, size: int) -> SequenceGroup:
    return SequenceGroup(Ranks(None, rank, size), (64,))  # type: ignore[arg-type]


@pytest.mark.launch
def test_every_mixer_gives_on_shares_what_it_gives_on_the_whole() -> None:
    torchrun = Path(sys.executable).with_name("torchrun")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [torchrun, "--standalone", "--nproc_per_node=3", SCRIPT]
    ended = subprocess.run(command, env=environment, check=False, timeout=300, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr[-2000:]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 5))
def test_shares_are_the_stream_cut_in_pieces(lengths: list[int], size: int) -> None:
    stream = Documents.from_lengths([*lengths, size])
    shares = [group(rank, size).share(stream) for rank in range(size)]
    assert torch.equal(torch.cat([share.position for share in shares]), stream.position)
    wholes = torch.cat([share.whole[share.document] for share in shares])
    assert torch.equal(wholes, stream.lengths[stream.document])
    assert all(not share.past[1:].any() for share in shares), "only a share's first document may have begun before it"
    counts = [share.num_tokens for share in shares]
    assert max(counts) - min(counts) <= 1
    assert [end - begin for begin, end in pairwise(even_bounds(stream.num_tokens, size))] == counts


def test_a_stream_of_fewer_tokens_than_ranks_is_refused() -> None:
    with pytest.raises(ValueError, match="2 tokens cannot be shared out to 3 ranks"):
        group(0, 3).share(Documents.from_lengths([2]))


@pytest.mark.parametrize(
    ("name", "ranks", "length", "scheme"),
    [
        ("global", 2, 4096, "heads"),  # the last rank would score three quarters of all pairs
        ("global", 3, 4096, "neighbours"),  # two key/value heads are not for three ranks
        ("local", 2, 4096, "neighbours"),
        ("rat", 2, 64, "neighbours"),
        ("rat", 2, 1 << 16, "heads"),  # the finals of so long a document are many
        ("rat_one", 2, 4096, "heads"),
        ("s2", 2, 4096, "neighbours"),
        ("ls", 2, 4096, "heads"),
        ("ls_all_short", 2, 4096, "neighbours"),
    ],
)
def test_the_cheaper_exchange_is_chosen(new_mixer, name, ranks, length, scheme) -> None:  # type: ignore[no-untyped-def]
    assert choose(new_mixer(name), [length], ranks, torch.float32).scheme == scheme


def test_rows_that_ranks_hold_whole_need_no_exchange(new_mixer) -> None:  # type: ignore[no-untyped-def]
    assert choose(new_mixer("global"), [64, 64], 2, torch.float32) == ("neighbours", 0)


def test_a_mixer_in_evaluation_mode_is_chosen_for_as_what_it_is_there(new_mixer) -> None:  # type: ignore[no-untyped-def]
    """Shifted groups see everything once trained."""
    assert choose(new_mixer("s2").eval(), [4096], 2, torch.float32).scheme == "heads"
