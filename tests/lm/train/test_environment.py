import torch

from lm.train.environment import describe_environment


def test_versions_devices_and_ranks_are_named() -> None:
    described = describe_environment(world_size=3)
    assert described["torch"] == torch.__version__
    assert described["ranks"] == "3"
    assert f"threads per rank: {torch.get_num_threads()}" in described["CPU"]
    assert all(isinstance(value, str) and value for value in described.values())
