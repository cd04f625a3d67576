import os

import torch

from lm.train.memory import peak_memory


def test_a_peak_counts_what_was_held_and_given_back() -> None:
    before = peak_memory(torch.device("cpu"))
    assert before > 10 << 20
    wanted = before + (64 << 20)
    held = bytearray(os.urandom(1)) * wanted  # more than ever, in pages that are written to
    assert len(held) == wanted
    del held
    assert peak_memory(torch.device("cpu")) > wanted
