import pytest

from lm.model.decoder import LanguageModel
from lm.run_file import RunFile
from lm.train.optimizer import build_optimizer, parameter_groups


@pytest.fixture
def run(make_run: object, request: pytest.FixtureRequest) -> RunFile:
    return make_run(f"model.tie_word_embeddings={request.param}")  # type: ignore[operator]


@pytest.mark.parametrize("run", ["true", "false"], indirect=True)
def test_every_parameter_is_in_one_group_and_only_matrices_decay(run: RunFile) -> None:
    model = LanguageModel(run.model)
    groups = parameter_groups(model, weight_decay=0.1)
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        spared = parameter.ndim == 1 or "embed" in name
        assert decay[id(parameter)] == (0.0 if spared else 0.1), name


@pytest.mark.parametrize("run", ["true"], indirect=True)
def test_frozen_parameters_are_left_out(run: RunFile) -> None:
    model = LanguageModel(run.model)
    model.requires_grad_(False)
    model.model.norm.weight.requires_grad_(True)
    (group,) = build_optimizer(model, run.optimizer).param_groups
    assert [id(p) for p in group["params"]] == [id(model.model.norm.weight)]
