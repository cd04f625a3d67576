import pytest
import torch

from lm.errors import UserError
from lm.train import distributed


def test_more_ranks_than_gpus_are_the_users_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UserError, match=r"has 2 GPUs, too few .* at most one rank for each GPU"):
        distributed.start()
