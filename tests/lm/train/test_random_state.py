import random

import numpy as np
import torch

from lm.train import random_state


def draws() -> list[float]:
    return [random.random(), random.gauss(), np.random.rand(), np.random.randn(), *torch.rand(3).tolist()]


def test_the_generators_go_on_where_they_were() -> None:
    draws()
    random.gauss()  # leaves a second normal value behind, which is part of the state
    np.random.randn()
    state = random_state.capture()
    after = draws()
    draws()
    random_state.restore(state)
    assert draws() == after


def test_ranks_steps_and_seeds_draw_differently() -> None:
    seen = []
    for key in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]:
        random_state.seed(*key)
        seen.append(tuple(draws()))
    assert len(set(seen)) == 4
    random_state.seed(0, 0, 1)
    assert tuple(draws()) == seen[-1]
