from __future__ import annotations

import pytest

from eval.longbench.summary import summary
from eval.longbench.tasks import RULES

# LongBench's README, tables of ChatGLM3-6B-32k.
CHATGLM3 = {
    **{"narrativeqa": 26.0, "qasper": 43.3, "multifieldqa_en": 51.7, "multifieldqa_zh": 62.3},
    **{"hotpotqa": 54.4, "2wikimqa": 44.9, "musique": 40.4, "dureader": 44.78},
    **{"gov_report": 36.8, "qmsum": 23.9, "multi_news": 27.9, "vcsum": 17.8},
    **{"trec": 79.0, "triviaqa": 87.1, "samsum": 38.2, "lsht": 42.0},
    **{"passage_count": 2.0, "passage_retrieval_en": 99.0, "passage_retrieval_zh": 94.0},
    **{"lcc": 57.66, "repobench-p": 54.76},
}
ENGLISH = {
    **{"single_document": 40.3, "multi_document": 46.6, "summarization": 29.5},
    **{"few_shot": 68.1, "synthetic": 50.5, "code": 56.2, "average": 48.5},
}
CHINESE = {
    **{"single_document": 62.3, "multi_document": 44.8, "summarization": 17.8},
    **{"few_shot": 42.0, "synthetic": 94.0, "code": 56.2, "average": 52.8},
}


def test_means_are_those_of_the_published_tables() -> None:
    assert CHATGLM3.keys() == RULES.keys()
    found = summary({name: score / 100 for name, score in CHATGLM3.items()})
    assert found["scores"] == CHATGLM3
    assert found["means"]["english"] == pytest.approx(ENGLISH, abs=0.06)
    assert found["means"]["chinese"] == pytest.approx(CHINESE, abs=0.06)


def test_a_category_that_is_not_complete_has_no_mean() -> None:
    names = ("lcc", "repobench-p", "narrativeqa", "qasper")
    found = summary(dict.fromkeys(names, 0.5))
    assert found["means"]["english"] == {"code": 50.0}
    assert found["means"]["chinese"] == {"code": 50.0}
    assert summary({"qasper": 0.5})["means"] == {}


def test_longbench_e_has_means_for_each_bucket() -> None:
    extended = [name for name, rules in RULES.items() if rules.extended]
    scores = {f"{name}_e/4-8k": 0.4 for name in extended} | {"lcc_e/8k+": 0.9, "repobench-p_e/8k+": 0.8}
    means = summary(scores)["means"]
    assert means["4-8k"] == dict.fromkeys(ENGLISH, 40.0)
    assert means["8k+"] == {"code": 85.0}
    assert means.keys() == {"4-8k", "8k+"}
