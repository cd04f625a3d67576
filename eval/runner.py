"""An evaluation from start to end: asks what is left to ask, writes down every answer, sums up."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from eval.asking import ask
from eval.efficiency import NoCacheError, efficiency
from eval.measuring import Key, Measurement, in_order, measure
from eval.model import Model
from eval.options import EvaluationOptions
from eval.reading import Corpus, open_corpus, readings
from eval.results import MeasurementFile, ResultFolder, Results, SampleFile, cells
from eval.selection import Questions, QuestionWriter, Skipped, file_hash, said_of
from eval.tasks import Haystack, Task, open_haystack
from lm.data.fingerprint import digest
from lm.errors import UserError
from lm.hf.positions import learned_positions
from lm.train.distributed import World
from lm.train.environment import describe_environment
from lm.train.progress import Progress


@dataclass(frozen=True)
class Texts:
    """What an evaluation reads besides the model."""

    haystack: Haystack
    corpora: Sequence[Corpus]


def open_texts(options: EvaluationOptions) -> Texts:
    """The texts that the options name. Raises UserError for those that do not exist."""
    return Texts(open_haystack(options), [open_corpus(text, options) for text in options.perplexity])


class Evaluation:
    """One evaluation under way, on this rank."""

    def __init__(
        self,
        model: Model,
        path: str,
        tasks: Sequence[Task],
        options: EvaluationOptions,
        texts: Texts,
        world: World,
        progress: Progress,
        evaluator: Model | None = None,
    ) -> None:
        """path: where the model came from, as the user wrote it. tasks, texts: those that the options choose.
        evaluator: the model by which key tokens are found; the evaluated one if left out. It is let go of before
        memory is measured, in which it counts as long as somebody else holds it.

        Raises UserError for lengths that one of the models has no positions for.
        """
        self.model, self.tasks, self.options, self.world, self.progress = model, tasks, options, world, progress
        self.haystack, self.corpora = texts.haystack, texts.corpora
        require_positions(model, options.lengths)
        if evaluator is not None:
            require_positions(evaluator, options.lengths, "--evaluator")
        self.settings = settings_of(model, path, options, tasks, texts)
        self.evaluator = evaluator or model
        self.settings["evaluator"] = self.evaluator.fingerprint() if "key-tokens" in options.protocols else None
        for one in (model, self.evaluator):
            one.batch_tokens = options.batch_tokens

    def run(self, folder: ResultFolder) -> Results | None:
        """Does what `folder` does not hold yet. Collective; the result is rank 0's, others get None.

        Raises UserError where the folder is in use or holds another evaluation, or where no task can be asked.
        """
        context = self.model.context
        if context is not None and max(self.options.lengths) > context:
            self.progress.say(f"{self.model.name} is made for {context:,} tokens: longer lengths extrapolate")
        with folder.claimed(self.world, self.settings):
            questions, skipped = self._questions()
            if questions:
                ask(self.model, questions, folder.samples, self.options.batch_tokens, self.world, self.progress)
            measurements = self._measure(folder)
            if self.world.rank != 0:
                return None
            results = Results(
                self.settings,
                cells(self.settings["tasks"], SampleFile.read(folder.samples)),
                in_order(MeasurementFile.read(folder.measurements), measurements),
                [asdict(one) for one in skipped],
                describe_environment(self.world.size),
            )
            folder.save(results)
            return results

    def _questions(self) -> tuple[list[Questions], list[Skipped]]:
        pairs = [(length, task) for length in sorted(self.options.lengths) for task in self.tasks]
        if not pairs:
            return [], []
        written: list[Questions | Skipped] = []
        writer = QuestionWriter(self.model, self.settings["tokenizer"], self.options, self.haystack)
        with self.progress.phase("writing the questions", total=len(pairs)) as phase:
            for length, task in pairs:
                phase.update(note=f"{task.name} at {length:,} tokens")
                written.append(writer.write(task, length))
                phase.advance()
            phase.update(note="")
        questions = [one for one in written if isinstance(one, Questions)]
        skipped = [one for one in written if isinstance(one, Skipped)]
        for line in said_of(skipped):
            self.progress.say(line)
        if not questions:
            raise UserError("--lengths: no task can be asked at these lengths, for the reasons above")
        return questions, skipped

    def _measure(self, folder: ResultFolder) -> list[Key]:
        """Perplexities, by all ranks in turn, then speed and memory, by rank 0 alone, which others would disturb."""
        read = self._read_texts(folder)
        self.evaluator = self.model
        gc.collect()
        costs = [
            Measurement("efficiency", f"{length:,} tokens", length, partial(self._cost, length))
            for length in sorted(self.options.lengths)
        ]
        measure("measuring speed and memory", costs, folder.measurements, self.world, self.progress, ranks=1)
        return [*read, *(one.key for one in costs)]

    def _read_texts(self, folder: ResultFolder) -> list[Key]:
        """Measures perplexities. What is to be read holds the evaluator, and is gone with this call."""
        read = list(readings(self.model, self.evaluator, self.corpora, self.options))
        measure("reading texts", read, folder.measurements, self.world, self.progress, ranks=self.world.size)
        return [one.key for one in read]

    def _cost(self, length: int) -> dict[str, Any]:
        try:
            return asdict(efficiency(self.model, length))
        except NoCacheError as error:
            return {"length": length, "reason": str(error)}


def settings_of(
    model: Model,
    path: str,
    options: EvaluationOptions,
    tasks: Sequence[Task],
    texts: Texts,
) -> dict[str, Any]:
    """All that fixes an evaluation, for settings.json. Files are named by their content."""
    network, longbench, haystack, corpora = model.model, options.longbench, texts.haystack, texts.corpora
    used = {text for task in tasks for text in task.texts}
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
        "haystack": {"name": haystack.name, "digest": haystack.digest} if "haystack" in used else None,
        "squad": file_hash(options, "squad") if "squad" in used else None,
        "hotpotqa": file_hash(options, "hotpotqa") if "hotpotqa" in used else None,
        "longbench": longbench and longbench.model_dump(include={"data", "apply_chat_template"}),
        "texts": {corpus.name: corpus.digest for corpus in corpora},
        "protocols": list(options.protocols) if corpora else [],
        "text_tokens": options.text_tokens if corpora else 0,
    }


def require_positions(model: Model, lengths: Sequence[int], option: str = "--lengths") -> None:
    """Raises UserError, which begins with `option`, for lengths at which the model has no embedding of the position."""
    learned = learned_positions(model.model)
    if learned is not None and max(lengths) > learned:
        raise UserError(
            f"{option}: {max(lengths)} is beyond the {learned} positions that {model.name} has embeddings for"
        )


def tokenizer_hash(model: Model) -> str:
    """16 hex digits: equal for tokenizers that cut text alike."""
    tokenizer = model.tokenizer
    made_of: list[Any] = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    if tokenizer.is_fast:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        # How a batch is cut and filled is set anew by every call.
        made_of = [{key: value for key, value in rules.items() if key not in ("truncation", "padding")}]
    return digest([*made_of, str(tokenizer.bos_token), str(tokenizer.eos_token)])
