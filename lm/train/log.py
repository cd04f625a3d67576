"""What a run writes down while it trains: `metrics.jsonl` and, if asked, for Weights & Biases and TensorBoard.

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
    mfu                  model FLOPs utilisation, a share in [0, 1]: see `lm.train.flops`
    data_seconds         of the step's time, what it waited for its rows
    peak_memory          bytes, the most so far: tensors of rank 0's GPU, or all of its process where it has none
    layer_NN             grafting, stage one: distance of the layer's new mixer from the original's; 1 is that of none
    validation_loss      held-out loss after the step, nats per token; average_validation_loss: of averaged weights
    validation_accuracy  share of held-out targets that the model finds most likely
    validation_bits_per_byte
    eval/TASK@LENGTH     score of a task on the live model, a share in [0, 1]; `eval/TASK@LENGTH/nll` goes with it
    layers/..., position_loss/...    see `lm.train.observe.layers`
    recall/N             share of a needle's tokens that are said again in a text of N tokens; `recall/N/nll` too

Evaluations may ride in the step's own record or come as a record of their own with the same step.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from lm.train.file_names import METRICS_FILE
from lm.train.json_lines import JsonLines, Record, plain
from lm.train.tensorboard import TensorBoard, require_tensorboard
from lm.train.wandb_run import WandbMode, require_wandb_login, start_wandb


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


def require_sinks(wandb: WandbMode, tensorboard: bool) -> None:
    """Raises UserError where a log of these settings lacks a login or a package. To be called before data is read."""
    if wandb == "online":
        require_wandb_login()
    if tensorboard:
        require_tensorboard()


def require_log(output: Path, wandb: WandbMode, tensorboard: bool) -> None:
    """The same, and for a metrics file in `output` that cannot be gone on with."""
    require_sinks(wandb, tensorboard)
    read_metrics(output / METRICS_FILE)


class RunLog:
    """One run's log: `metrics.jsonl`, wandb and TensorBoard in its folder, on rank 0; does nothing on other ranks.

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
        tensorboard: bool = False,
        project: str = "braid",
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        """`step`: the last finished step (0 in a new run). `name` and `config` are wandb's (the resolved run file).

        Raises UserError for a broken metrics file, for `wandb="online"` without a login, and for `tensorboard` where it
        is not installed.
        """
        self._metrics: MetricsFile | None = None
        self._run: Any = None
        self._waiting: list[Record] = []
        self._tensorboard: TensorBoard | None = None
        if rank != 0:
            return
        require_sinks(wandb, tensorboard)
        self._metrics = MetricsFile(output / METRICS_FILE)
        self._metrics.truncate_after(step)
        if wandb != "disabled":
            self._run = start_wandb(output, wandb, project, name or output.name, config or {})
        if tensorboard:
            self._tensorboard = TensorBoard(output, step)

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
        if self._tensorboard is not None:
            self._tensorboard.write(plain(record))

    def rewind(self, record: Record) -> None:
        """Removes the records after the step of this one, to which the run went back, and appends it."""
        if self._metrics is not None:
            self._waiting = [waiting for waiting in self._waiting if waiting["step"] <= record["step"]]
            self._metrics.truncate_after(record["step"])
        if self._tensorboard is not None:
            self._tensorboard.rewind(record["step"])
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

    def close(self, *, failed: bool = False) -> None:
        """Ends the wandb run (as failed, if so) and closes the files."""
        if self._run is not None:
            self._run.finish(exit_code=int(failed))
            self._run = None
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._metrics is not None:
            with suppress(OSError):
                self._append()
            self._metrics.close()
            self._metrics = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(failed=error is not None)
