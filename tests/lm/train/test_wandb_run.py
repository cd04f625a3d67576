"""The view of a Weights & Biases project, made without the network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lm.cli import main
from lm.train.dashboard import SECTIONS
from lm.train.wandb_run import wandb_view

METRICS = {
    "Loss": ["loss", "validation_loss"],
    "Attention entropy": ["layers/entropy/03", "layers/entropy/03/0-1"],
    "Half-life of gates": ["layers/half_life/00"],
    "Loss by position": ["position_loss/0", "position_loss/512"],
    "Recall": ["recall/1024"],
    "Recall, loss": ["recall/1024/nll"],
    "Tasks": ["eval/passkey@512"],
}


def test_the_view_has_a_chart_for_every_panel_of_the_dashboard() -> None:
    view = wandb_view("somebody", "braid")
    charts = {panel.title: panel for section in view.sections for panel in section.panels}
    assert [section.name for section in view.sections] == list(SECTIONS)
    assert list(charts) == [panel.title for panels in SECTIONS.values() for panel in panels]
    assert {chart.x for chart in charts.values()} == {"step"}
    everything = [name for names in METRICS.values() for name in names]
    for title, names in METRICS.items():
        assert [name for name in everything if re.search(charts[title].metric_regex, name)] == names
    assert "Largest attention logit" in view._to_model().model_dump_json()  # as it would be sent


def test_without_a_login_a_dashboard_is_a_users_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert main(["dashboard", "braid"]) == 2
    assert "braid dashboard needs a Weights & Biases login" in capsys.readouterr().err
