"""Weights & Biases: the run beside `metrics.jsonl`, and the view of its project."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from lm.errors import UserError
from lm.train.dashboard import SECTIONS, Panel
from lm.train.json_lines import plain

WandbMode = Literal["online", "offline", "disabled"]
VIEW = "Braid"


def require_wandb_login(key: str = "log.wandb: 'online'") -> None:
    """Raises UserError, naming what needs it, unless wandb has credentials. Call it before any data is loaded."""
    wandb = _import_wandb()
    try:
        logged_in = bool(wandb.login(prompt=False))
    except wandb.Error:
        logged_in = False
    if not logged_in:
        raise UserError(
            f"{key} needs a Weights & Biases login and there is none. Run `wandb login` or set WANDB_API_KEY. Runs "
            "need none with log.wandb 'offline' (upload later with `wandb sync`) or 'disabled'."
        )


def _import_wandb() -> Any:
    # wandb reads these once, when it is imported; its own settings object comes too late for its first lines.
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    import wandb

    return wandb


def start_wandb(output: Path, mode: WandbMode, project: str, name: str, config: Mapping[str, Any]) -> Any:
    """A wandb run; of a folder that has had one before, the same one. Raises UserError where it does not start."""
    wandb = _import_wandb()
    id_file = output / "wandb" / "run_id"
    if not id_file.exists():
        id_file.parent.mkdir(parents=True, exist_ok=True)
        id_file.write_text(secrets.token_hex(8))
    try:
        run = wandb.init(
            project=project,
            name=name,
            dir=os.fspath(output),
            mode=mode,
            id=id_file.read_text().strip(),
            resume="allow",
            config=plain(config),
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
    except wandb.Error as error:
        raise UserError(f"log.wandb: '{mode}' did not start: {error}. Choose 'offline' or 'disabled'.") from error
    # wandb's own step may only grow, while a resumed run repeats the steps after its checkpoint.
    run.define_metric("step")
    run.define_metric("*", step_metric="step")
    return run


def wandb_view(entity: str, project: str) -> Any:
    """The project's view with a section for each of `SECTIONS`, as a `wandb_workspaces.workspaces.Workspace`.

    Raises UserError where the package is missing.
    """
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError:
        raise UserError("wandb's views need a package: pip install 'braid-lm[dashboard]'") from None

    def chart(panel: Panel) -> Any:
        return reports.LinePlot(
            title=panel.title, x="step", metric_regex=f"^({panel.keys})$", title_y=panel.label, log_y=panel.log
        )

    sections = [
        workspaces.Section(name=name, panels=[chart(panel) for panel in panels], is_open=True)
        for name, panels in SECTIONS.items()
    ]
    return workspaces.Workspace(name=VIEW, entity=entity, project=project, sections=sections)


def save_wandb_view(project: str, entity: str | None) -> str:
    """Saves the view in a project online, and returns its address.

    entity: the user or team; None is the login's own. Raises UserError without a login, and where wandb refuses.
    """
    require_wandb_login("braid dashboard")
    wandb = _import_wandb()
    view = wandb_view(entity or wandb.Api().default_entity, project)
    try:
        view.save()
    except Exception as error:  # whatever its client raises
        raise UserError(f"braid dashboard: wandb did not take the view: {type(error).__name__}: {error}") from error
    return str(view.url)
