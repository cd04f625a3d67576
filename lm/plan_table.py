"""The plan of a run file, on the terminal."""

from __future__ import annotations

import torch
from rich.console import Console
from rich.table import Table

from lm.plan import ALONE, Memory, Plan, Shared, rank_memory
from lm.run_file import AnyRun, GraftFile, RunFile
from lm.train.data_phase import require_whole_rows
from lm.train.format import short_number
from lm.train.optimizer import parameter_groups
from lm.train.precision import DTYPES
from lm.train.recompute import planned
from lm.train.timeline import Span


def plan_run(run: AnyRun, world_size: int) -> tuple[Plan, Memory]:
    """The plan of a run's model at its longest rows, and the memory of one of `world_size` ranks at its largest.

    Raises UserError where ranks are to hold rows together and do not form such groups.
    """
    if run.train.sequence_parallel > 1:
        require_whole_rows(run, world_size)
    dtype = DTYPES[run.train.precision]
    plans = _plans(run, world_size)
    memories = [
        rank_memory(
            plans[span.source.sequence_length],
            zero_stage=run.deepspeed.effective_stage(run.train.precision),
            world_size=world_size,
            micro_batch_size=span.micro_batch_size,
            dtype=dtype,
            average=run.train.average_decay is not None,
        )
        for span in run.timeline.spans
    ]
    return plans[run.longest_row], max(memories, key=lambda memory: memory.total)


def _plans(run: AnyRun, world_size: int) -> dict[int, Plan]:
    """The plans of a run's model for rows of each length, longest rows included."""
    lengths = {span.source.sequence_length for span in run.timeline.spans} | {run.longest_row}
    ranks, dtype = run.train.sequence_parallel, DTYPES[run.train.precision]
    shared = ALONE if ranks == 1 else Shared(ranks, len(run.timeline.longest_forward(world_size // ranks)))
    return {
        length: planned(run.trainee.plan(length, dtype, shared), run.train.activation_checkpointing)
        for length in lengths
    }


def print_plan(run: AnyRun, plan: Plan, memory: Memory, world_size: int) -> None:
    """Writes the layers and the totals to standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 120
    console.print(_layer_table(plan))
    if plan.shared.ranks > 1:
        console.print(_exchange_table(plan, run.timeline.most_micro_batches(world_size // plan.shared.ranks)))
    console.print(_totals(run, plan, memory, world_size))


def byte_size(count: float) -> str:
    """`1536` -> `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def _exchange_table(plan: Plan, forwards: int) -> Table:
    """`forwards`: of a step on one rank."""
    table = Table(title=f"Exchange of {plan.shared.ranks} ranks that hold a row together")
    for column in ("layer", "mixer", "by", "the most that one receives in a step"):
        table.add_column(column, justify="left" if column == "mixer" else "right")
    per_step = [2 * forwards * layer.exchange_bytes for layer in plan.layers]
    for index, (layer, received) in enumerate(zip(plan.layers, per_step, strict=True)):
        table.add_row(str(index), layer.mixer, layer.exchange, byte_size(received))
    table.add_row("all", "", "", byte_size(sum(per_step)))
    return table


def _layer_table(plan: Plan) -> Table:
    table = Table(title=f"Layers at {plan.sequence_length:,} tokens")
    table.add_column("layer", justify="right")
    table.add_column("mixer")
    table.add_column("sees")
    for column in ("heads", "parameters", "FLOPs/token", "cache/token", "cache", "reach"):
        table.add_column(column, justify="right")
    for index, layer in enumerate(plan.layers):
        table.add_row(
            str(index),
            layer.mixer if layer.mixer == layer.kind else f"{layer.mixer} ({layer.kind})",
            layer.extent,
            f"{layer.heads}" if layer.heads == layer.kv_heads else f"{layer.heads} on {layer.kv_heads}",
            f"{layer.parameters:,}",
            short_number(layer.flops_per_token),
            byte_size(layer.cache_bytes_per_token),
            byte_size(layer.cache_bytes),
            f"{layer.reach:,}",
        )
    return table


def _of_the_base(plan: Plan) -> str:
    if not plan.base_cache_bytes:
        return ""
    return f"; the base: {byte_size(plan.base_cache_bytes)}, {plan.base_cache_bytes / plan.cache_bytes:.3g} times that"


def _rates(run: AnyRun) -> dict[str, str]:
    """Peak learning rate of each group of parameters, where they are not all the run's."""
    optimizer = run.optimizer
    if optimizer.base_width is None and optimizer.kind == "adamw":
        return {}
    if not isinstance(run, RunFile):
        return {}
    with torch.device("meta"):
        built = run.trainee.build()
    groups = parameter_groups(built.model, optimizer.weight_decay, built.lr_factors, optimizer.kind == "muon")
    return {
        f"  lr of {group['name']}, group {index}": f"{optimizer.lr * group['lr_factor']:.3g}, weight decay "
        f"{group['weight_decay']:.3g}, {sum(p.numel() for p in group['params']):,} parameters"
        for index, group in enumerate(groups)
    }


def _span(span: Span) -> str:
    return (
        f"stage {span.stage}: {span.rows:,} rows of {span.source.sequence_length:,}, {short_number(span.tokens)} tokens"
    )


def _totals(run: AnyRun, plan: Plan, memory: Memory, world_size: int) -> Table:
    plans, spans, tokens = _plans(run, world_size), run.timeline.spans, run.timeline.tokens
    flops = sum(plans[span.source.sequence_length].training_flops_per_token * span.tokens for span in spans)
    ranks = f"rank of {world_size}, ZeRO {run.deepspeed.effective_stage(run.train.precision)}, {run.train.precision}"
    trained = plan.parameters - plan.frozen_parameters
    without = " without what is recomputed" if plan.recomputed_flops_per_token else ""
    backward = "2 to 3 x forward" if plan.frozen_parameters else "3 x forward"
    rows = {
        "parameters": f"{plan.parameters:,} ({plan.embedding_parameters:,} of them embeddings)",
        "trained parameters": f"{trained:,} ({trained / plan.parameters:.2%})",
        "forward FLOPs per token": short_number(plan.flops_per_token),
        "training FLOPs per token": f"{short_number(plan.training_flops_per_token)} ({backward})",
    }
    if plan.recomputed_flops_per_token:
        rows["  recomputed beside them"] = f"at most {short_number(plan.recomputed_flops_per_token)}"
    rows |= {
        "whole run": f"{short_number(tokens)} tokens, {flops:.3g} FLOPs{without}",
        f"cache at {plan.sequence_length:,} tokens": f"{byte_size(plan.cache_bytes)} per sequence{_of_the_base(plan)}",
        f"memory per {ranks}": f"{byte_size(memory.total)} without communication buffers",
        "  weights": byte_size(memory.parameters),
        "  gradients": byte_size(memory.gradients),
        "  optimizer": byte_size(memory.optimizer),
        "  activations": f"about {byte_size(memory.activations)} for the rows of one forward",
    }
    rows |= _rates(run)
    if len(spans) > 1:
        rows |= {f"  from step {span.first_step:,}": _span(span) for span in spans}
    if isinstance(run, GraftFile):
        regress, layers = run.graft.regress, len(run.trainee.operation.layers)
        regressed = short_number(regress.steps * regress.global_batch_tokens)
        rows["before that, stage one"] = f"{layers} new mixers regressed on {regressed} tokens in {regress.steps} steps"
    table = Table(title="Totals", show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    return table
