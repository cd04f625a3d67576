"""An evaluation from start to end: asks what is left to ask, writes down every answer, sums up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from eval.asking import ask
from eval.efficiency import measure
from eval.model import Model
from eval.options import EvaluationOptions
from eval.results import MeasurementFile, ResultFolder, Results, SampleFile, cells
from eval.selection import Questions, Skipped, write_questions
from eval.tasks import Haystack, Task, open_haystack
from lm.data.fingerprint import content_digest, digest
from lm.errors import UserError
from lm.train.distributed import World
from lm.train.environment import describe_environment
from lm.train.progress import Progress


class Evaluation:
    """One evaluation under way, on this rank."""

    def __init__(
        self,
        model: Model,
        path: str,
        tasks: Sequence[Task],
        options: EvaluationOptions,
        world: World,
        progress: Progress,
    ) -> None:
        """path: where the model came from, as the user wrote it. tasks: those that the options choose.

        Raises UserError for texts that do not exist, and lengths that the model has no positions for.
        """
        self.model, self.tasks, self.options, self.world, self.progress = model, tasks, options, world, progress
        self.haystack = open_haystack(options.haystack, options.squad, options.hotpotqa)
        require_positions(model, options.lengths)
        self.settings = settings_of(model, path, options, tasks, self.haystack)
        model.batch_tokens = options.batch_tokens

    def run(self, folder: ResultFolder) -> Results | None:
        """Does what `folder` does not hold yet. Collective; the result is rank 0's, others get None.

        Raises UserError where the folder is in use or holds another evaluation, or where no task can be asked.
        """
        longer = [length for length in self.options.lengths if length > self.model.context]
        if longer:
            self.progress.say(
                f"{self.model.name} is made for {self.model.context:,} tokens: longer lengths extrapolate"
            )
        with folder.claimed(self.world, self.settings):
            questions, skipped = self._questions()
            ask(self.model, questions, folder.samples, self.options.batch_tokens, self.world, self.progress)
            self._measure(folder)
            self.world.barrier()
            if self.world.rank != 0:
                return None
            results = Results(
                self.settings,
                cells(self.settings["tasks"], SampleFile.read(folder.samples)),
                sorted(MeasurementFile.read(folder.measurements), key=lambda record: (record["kind"], record["order"])),
                [asdict(one) for one in skipped],
                describe_environment(self.world.size),
            )
            folder.save(results)
            return results

    def _questions(self) -> tuple[list[Questions], list[Skipped]]:
        pairs = [(length, task) for length in sorted(self.options.lengths) for task in self.tasks]
        written: list[Questions | Skipped] = []
        with self.progress.phase("writing the questions", total=len(pairs)) as phase:
            for length, task in pairs:
                phase.update(note=f"{task.name} at {length:,} tokens")
                written.append(write_questions(task, length, self.model, self.options, self.haystack))
                phase.advance()
            phase.update(note="")
        questions = [one for one in written if isinstance(one, Questions)]
        skipped = [one for one in written if isinstance(one, Skipped)]
        for one in skipped:
            self.progress.say(f"left out: {one.reason}")
        if pairs and not questions:
            raise UserError("--lengths: none of the tasks can be asked at these lengths, for the reasons above")
        return questions, skipped

    def _measure(self, folder: ResultFolder) -> None:
        """Measures what is not measured yet, on rank 0 alone: other ranks would disturb it."""
        if self.world.rank != 0:
            return
        done = {(record["kind"], record["of"]) for record in MeasurementFile.read(folder.measurements)}
        file = MeasurementFile(folder.measurements)
        lengths = [length for length in sorted(self.options.lengths) if ("efficiency", str(length)) not in done]
        if lengths:
            with self.progress.phase("measuring speed and memory", total=sum(lengths)) as phase:
                for length in lengths:
                    phase.update(note=f"{length:,} tokens")
                    found = asdict(measure(self.model, length))
                    file.append({"kind": "efficiency", "of": str(length), "order": length} | found)
                    phase.advance(length)
        file.close()


def settings_of(
    model: Model, path: str, options: EvaluationOptions, tasks: Sequence[Task], haystack: Haystack
) -> dict[str, Any]:
    """All that fixes an evaluation, for settings.json. Files are named by their content."""
    network = model.model
    return {
        "model": {
            "name": model.name,
            "path": path,
            "fingerprint": model.fingerprint(),
            "parameters": network.num_parameters(),
            "context": model.context,
            "dtype": str(network.dtype).removeprefix("torch."),
        },
        "tokenizer": tokenizer_hash(model),
        "tasks": {task.name: task.metric for task in tasks},
        "lengths": sorted(options.lengths),
        "samples": options.samples,
        "seed": options.seed,
        "haystack": {"name": haystack.name, "digest": haystack.digest} if tasks else None,
        "squad": _file_hash(options.squad),
        "hotpotqa": _file_hash(options.hotpotqa),
        "perplexity": {text.name: _file_hash(text) for text in options.perplexity},
    }


def require_positions(model: Model, lengths: Sequence[int]) -> None:
    """Raises UserError for lengths at which the model has no embedding of the position."""
    learned = [
        module.num_embeddings
        for name, module in model.model.named_modules()
        if isinstance(module, nn.Embedding) and name.endswith(("wpe", "embed_positions", "position_embeddings"))
    ]
    if learned and max(lengths) > model.context:
        raise UserError(
            f"--lengths: {max(lengths)} is beyond the {model.context} positions that {model.name} has embeddings for"
        )


def tokenizer_hash(model: Model) -> str:
    """16 hex digits: equal for tokenizers with equal ids for all their pieces."""
    return digest(sorted(model.tokenizer.get_vocab().items()))


def _file_hash(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return content_digest([path.read_bytes()])
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
