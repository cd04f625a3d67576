"""What a report shows, and the files of an output folder that it is read from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from lm.errors import UserError
from lm.plan import LayerPlan, Plan, Shared
from lm.train.before_after import BeforeAfter
from lm.train.evaluation import Evaluation
from lm.train.file_names import METRICS_FILE, RUN_FILE
from lm.train.json_lines import plain
from lm.train.log import read_metrics
from lm.train.sample import Sample, SamplingSettings

EVALUATION_FILE = "evaluation.json"
PLAN_FILE = "plan.json"
SAMPLE_FILE = "sample.json"
EXTENSION_FILE = "extension.json"
BEFORE_FILE = "before.json"
ENVIRONMENT_FILE = "environment.json"

T = TypeVar("T")


@dataclass(frozen=True)
class ReportData:
    """A run as the report tells it; what is None or empty is left out of the page.

    metrics: records of `lm.train.log`. environment: names and values. run_file: the resolved run file's text.
    before: evaluations of what the run started from, by name.
    """

    title: str
    metrics: Sequence[Mapping[str, Any]] = ()
    evaluation: Evaluation | None = None
    plan: Plan | None = None
    sample: Sample | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    run_file: str = ""
    before_after: BeforeAfter | None = None
    before: Mapping[str, Evaluation] = field(default_factory=dict)

    def series(self, key: str) -> list[tuple[float, float | None]]:
        """(step, value) of every record that has the key; None where the value was not finite."""
        return [(record["step"], record[key]) for record in self.metrics if key in record]

    def last(self, key: str) -> float | None:
        """The newest value of a key; None where there is none."""
        return next((record[key] for record in reversed(self.metrics) if record.get(key) is not None), None)


def save_report_data(
    output: Path,
    *,
    evaluation: Evaluation | None = None,
    before_after: BeforeAfter | None = None,
    plan: Plan | None = None,
    sample: Sample | None = None,
    environment: Mapping[str, str] | None = None,
    before: Mapping[str, Evaluation] | None = None,
) -> None:
    """Writes what is given into the output folder, one file each, replacing an older one.

    `metrics.jsonl` is the log's and `run.yaml` the run file's own.
    """
    if evaluation is not None:
        _write(output / EVALUATION_FILE, evaluation.to_json())
    if before_after is not None:
        _write(output / EXTENSION_FILE, before_after.to_json())
    if plan is not None:
        _write(output / PLAN_FILE, plan.to_json())
    if sample is not None:
        _write(output / SAMPLE_FILE, asdict(sample))
    if environment is not None:
        _write(output / ENVIRONMENT_FILE, dict(environment))
    if before is not None:
        _write(output / BEFORE_FILE, {name: found.to_json() for name, found in before.items()})


def _write(path: Path, values: dict[str, Any]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(plain(values), indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def load_report_data(output: Path) -> ReportData:
    """Reads the files of an output folder; those that are missing leave their part of the report out.

    Raises UserError where `output` holds no metrics or a file is damaged.
    """
    if not (output / METRICS_FILE).exists():
        raise UserError(f"{output}: no {METRICS_FILE} here, so there is no run to report on.")
    environment = _read(output / ENVIRONMENT_FILE)
    run_file = output / RUN_FILE
    return ReportData(
        title=output.resolve().name,
        metrics=read_metrics(output / METRICS_FILE),
        evaluation=_parsed(output / EVALUATION_FILE, Evaluation.from_json),
        before_after=load_before_after(output),
        plan=_parsed(output / PLAN_FILE, _plan),
        sample=_parsed(output / SAMPLE_FILE, _sample),
        environment=environment or {},
        run_file=run_file.read_text(encoding="utf-8") if run_file.exists() else "",
        before=_parsed(output / BEFORE_FILE, _evaluations) or {},
    )


def load_before_after(output: Path) -> BeforeAfter | None:
    """What was measured of an extension, if anything. Raises UserError where the file is damaged."""
    return _parsed(output / EXTENSION_FILE, BeforeAfter.from_json)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}). Delete it to leave its part out of the report.") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object. Delete it to leave its part out of the report.")
    return values


def _parsed(path: Path, parse: Callable[[dict[str, Any]], T]) -> T | None:
    values = _read(path)
    if values is None:
        return None
    try:
        return parse(values)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not as this version writes it ({error}). Delete it to leave its part out of the report."
        ) from error


def _evaluations(values: dict[str, Any]) -> dict[str, Evaluation]:
    return {name: Evaluation.from_json(found) for name, found in values.items()}


def _plan(values: dict[str, Any]) -> Plan:
    own = {item.name: values[item.name] for item in fields(Plan)}
    layers = tuple(LayerPlan(**layer) for layer in own["layers"])
    return Plan(**own | {"layers": layers, "shared": Shared(**own["shared"])})


def _sample(values: dict[str, Any]) -> Sample:
    return Sample(values["prompt"], values["text"], SamplingSettings(**values["settings"]))
