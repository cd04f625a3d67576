from collections.abc import Callable

import pytest

from lm.model.decoder import LanguageModel
from lm.plan import make_plan
from lm.run_file import RunFile
from lm.train.flops import StepFlops

MakeRun = Callable[..., RunFile]


def test_a_row_of_one_document_costs_what_the_plan_says(make_run: MakeRun) -> None:
    options = make_run().model
    plan = make_plan(options, 32)
    count = StepFlops(LanguageModel(options), plan)
    assert count([[32], [32, 32]]) == pytest.approx(96 * plan.training_flops_per_token)


def test_rows_of_short_documents_cost_what_a_plan_for_short_rows_says(make_run: MakeRun) -> None:
    options = make_run("model.layers=rat local ls s2 rat").model
    count = StepFlops(LanguageModel(options), make_plan(options, 32))
    expected = 64 * make_plan(options, 8).training_flops_per_token
    assert count([[8] * 4, [8] * 4]) == pytest.approx(expected)
    assert expected < 64 * make_plan(options, 32).training_flops_per_token
