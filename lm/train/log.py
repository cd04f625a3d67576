"""What a run writes down while it trains: `metrics.jsonl` and, beside it, a Weights & Biases run.

A record is one flat mapping with an integer `step` (optimizer steps finished) and JSON values. The names that the
progress display and the report know, each optional:

    loss                 training loss of the step, nats per token
    learning_rate        of the first parameter group, as used in the step
    grad_norm            global gradient norm before clipping
    batch_hash           of the rows that the step read, whoever read them (`braid verify` compares it)
    skipped              steps so far whose loss or gradient was not finite
    spikes               steps so far that the guard held to be spikes, and guard: what it did about this one
    tokens               training tokens seen since the run began
    step_seconds         wall-clock time of the step
    tokens_per_second    over all ranks
    mfu                  model FLOPs utilisation, a share in [0, 1]
    peak_memory          bytes, the most so far: tensors of rank 0's GPU, or all of its process where it has none
    layer_NN             grafting, stage one: distance of the layer's new mixer from the original's; 1 is that of none
    validation_loss      held-out loss after the step, nats per token
    validation_accuracy  share of held-out targets that the model finds most likely
    validation_bits_per_byte
    eval/TASK@LENGTH     score of a task on the live model, a share in [0, 1]; `eval/TASK@LENGTH/nll` goes with it

Evaluations may ride in the step's own record or come as a record of their own with the same step.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Literal, Self

from lm.errors import UserError
from lm.train.json_lines import JsonLines, Record, plain

METRICS_FILE = "metrics.jsonl"

WandbMode = Literal["online", "offline", "disabled"]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole records of a metrics file, in file order; [] where there is no file.

    A last line that a killed run left half-written is not a record. Raises UserError where an earlier line is broken.
    """
    return MetricsFile.read(path)


class MetricsFile(JsonLines):
    """`metrics.jsonl`."""

    required: ClassVar[Mapping[str, type]] = {"step": int}
    remedy = "Delete that line, or the whole folder to start the run anew."

    def truncate_after(self, step: int) -> int:
        """Removes every record with a step above `step` and returns how many those were.

        A resumed run calls it with its checkpoint's step, so that the steps it is about to repeat are there once.
        """
        records = self.read(self.path)
        kept = [record for record in records if record["step"] <= step]
        if len(kept) < len(records):
            self.keep(kept)
        return len(records) - len(kept)


def require_wandb_login() -> None:
    """Raises UserError unless wandb has credentials. Call it before any data is loaded when the mode is online."""
    wandb = _import_wandb()
    try:
        logged_in = bool(wandb.login(prompt=False))
    except wandb.Error:
        logged_in = False
    if not logged_in:
        raise UserError(
            "log.wandb: 'online' needs a Weights & Biases login and there is none. Run `wandb login` or set "
            "WANDB_API_KEY, or choose 'offline' (upload later with `wandb sync`) or 'disabled'."
        )


def _import_wandb() -> Any:
    # wandb reads these once, when it is imported; its own settings object comes too late for its first lines.
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_CONSOLE", "off")
    import wandb

    return wandb


class RunLog:
    """One run's log: `metrics.jsonl` and wandb in the output folder, on rank 0; does nothing on other ranks.

    Use it as a context manager, or call `close`. A run that resumes passes the step it resumes from; later records
    are removed from the file, and the wandb run continues under the id kept in `wandb/run_id`.
    """

    def __init__(
        self,
        output: Path,
        *,
        rank: int = 0,
        step: int = 0,
        wandb: WandbMode = "offline",
        project: str = "braid",
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """`step`: the last finished step (0 in a new run). `name` and `config` are wandb's (the resolved run file).

        Raises UserError for a broken metrics file, and for `wandb="online"` without a login.
        """
        self._metrics: MetricsFile | None = None
        self._run: Any = None
        self._waiting: list[Record] = []
        if rank != 0:
            return
        if wandb == "online":
            require_wandb_login()
        self._metrics = MetricsFile(output / METRICS_FILE)
        self._metrics.truncate_after(step)
        if wandb != "disabled":
            self._run = _start_wandb(output, wandb, project, name or output.name, config or {})

    def write(self, record: Record) -> None:
        """Appends one record (see the module's docstring) to the metrics and to wandb.

        One that a full disk does not take is written with a later one, or by `sync`.
        """
        if self._metrics is not None:
            self._waiting.append(record)
            with suppress(OSError):
                self._append()
        if self._run is not None:
            self._run.log({key: value for key, value in plain(record).items() if value is not None})

    def rewind(self, record: Record) -> None:
        """Removes the records after the step of this one, to which the run went back, and appends it."""
        if self._metrics is not None:
            self._waiting = [waiting for waiting in self._waiting if waiting["step"] <= record["step"]]
            self._metrics.truncate_after(record["step"])
        self.write(record)

    def sync(self) -> None:
        """Forces the metrics to the disk; to be called before a checkpoint becomes current. Raises OSError."""
        if self._metrics is not None:
            self._append()
            self._metrics.sync()

    def _append(self) -> None:
        assert self._metrics is not None
        while self._waiting:
            self._metrics.append(self._waiting[0])
            del self._waiting[0]

    def summarise(self, values: Record) -> None:
        """Adds the run's final figures to wandb's summary."""
        if self._run is not None:
            self._run.summary.update(plain(values))

    def close(self, *, failed: bool = False) -> None:
        """Ends the wandb run (as failed, if so) and closes the file."""
        if self._run is not None:
            self._run.finish(exit_code=int(failed))
            self._run = None
        if self._metrics is not None:
            self._metrics.close()
            self._metrics = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)


def _start_wandb(output: Path, mode: WandbMode, project: str, name: str, config: Mapping[str, Any]) -> Any:
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
