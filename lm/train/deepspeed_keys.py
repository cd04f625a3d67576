"""Which keys DeepSpeed's configuration knows, which take effect here, and which other keys of the run file decide.

DeepSpeed ignores a top-level key that it does not know without a word (0.19), so the list is kept here and checked.
"""

from __future__ import annotations

OWNED = {
    "train_batch_size": "train.global_batch_tokens",
    "train_micro_batch_size_per_gpu": "train.micro_batch_size",
    "gradient_accumulation_steps": "train.global_batch_tokens and train.micro_batch_size",
    "managed_gradient_accumulation": "train.micro_batch_size",
    "gradient_clipping": "train.gradient_clipping",
    "bf16": "train.precision",
    "bfloat16": "train.precision",
    "fp16": "train.precision",
    "torch_autocast": "train.precision",
    "data_types": "train.precision",
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "steps_per_print": "log.every",
    "tensorboard": "log",
    "wandb": "log.wandb",
    "csv_monitor": "log",
    "comet": "log",
    "checkpoint": "train.checkpoint_every",
    "zero_allow_untested_optimizer": "optimizer.kind",
    "zero_force_ds_cpu_optimizer": "optimizer.kind",
}
"""Keys that the trainer sets itself, each with the key of the run file that decides it."""

PASSED_THROUGH = frozenset(
    {
        "aio",
        "communication_data_type",
        "gradient_predivide_factor",
        "memory_breakdown",
        "prescale_gradients",
        "zero_optimization",
    }
)
"""Keys that are handed on."""
SECTIONS = ("aio", "zero_optimization")
"""Those of them that are mappings."""

AIO_KEYS = frozenset(
    {"block_size", "intra_op_parallelism", "overlap_events", "queue_depth", "single_submit", "use_gds"}
)
"""What it takes in `aio`, of which it ignores anything else."""

_SILENT = "DeepSpeed's log is kept off the screen, so it would show nothing"
_NOT_USED = "nothing that it sets is used by this trainer"
REFUSED = {
    "activation_checkpointing": _NOT_USED,
    "autotuning": "it starts runs of its own; `braid plan` says what fits",
    "comms_logger": _SILENT,
    "compile": _NOT_USED,
    "compression_training": _NOT_USED,
    "data_efficiency": "the order of the data is a pure function of the step",
    "dataloader_drop_last": _NOT_USED,
    "datastates_ckpt": "checkpoints are written by the trainer",
    "disable_allgather": _NOT_USED,
    "disable_python_gc": _NOT_USED,
    "dump_state": _SILENT,
    "expert_parallel": _NOT_USED,
    "flops_profiler": "metrics.jsonl has the model FLOPs utilisation of every step",
    "gradient_allreduce_op": "gradients are means over all targets, which it would undo",
    "hybrid_engine": _NOT_USED,
    "log_level": _SILENT,
    "pipeline": _NOT_USED,
    "seq_parallel_communication_data_type": _NOT_USED,
    "tensor_parallel": _NOT_USED,
    "timers": _SILENT,
    "use_data_before_expert_parallelism": _NOT_USED,
    "wall_clock_breakdown": _SILENT,
    "weight_quantization": _NOT_USED,
}
"""Keys of DeepSpeed that would have no effect here, or a wrong one, each with the reason."""

ZERO_KEYS = frozenset(
    {
        "allgather_bucket_size",
        "allgather_partitions",
        "allgather_sequential",
        "contiguous_gradients",
        "elastic_checkpoint",
        "enable_sanity_checks",
        "gather_16bit_weights_on_model_save",
        "ignore_unused_parameters",
        "leaf_module",
        "load_from_fp32_weights",
        "log_trace_cache_warnings",
        "max_live_parameters",
        "max_reuse_distance",
        "memory_efficient_linear",
        "model_persistence_threshold",
        "module_granularity_threshold",
        "offload_optimizer",
        "offload_param",
        "overlap_comm",
        "override_module_apply",
        "param_persistence_threshold",
        "parameter_alignment",
        "pipeline_loading_checkpoint",
        "prefetch_bucket_size",
        "reduce_bucket_size",
        "reduce_scatter",
        "round_robin_gradients",
        "save_muon_momentum_buffer_in_memory",
        "stage",
        "stage3_allgather_sequential",
        "stage3_gather_16bit_weights_on_model_save",
        "stage3_max_live_parameters",
        "stage3_max_reuse_distance",
        "stage3_model_persistence_threshold",
        "stage3_module_granularity_threshold",
        "stage3_param_persistence_threshold",
        "stage3_prefetch_bucket_size",
        "stage3_use_all_reduce_for_fetch_params",
        "sub_group_size",
        "use_all_reduce_for_fetch_params",
        "use_multi_rank_bucket_allreduce",
        "zero_hpz_partition_size",
        "zero_quantized_gradients",
        "zero_quantized_nontrainable_weights",
        "zero_quantized_weights",
    }
)
"""What DeepSpeed 0.19 takes in `zero_optimization`, without what it calls deprecated and what follows."""

ZERO_REFUSED = {
    "compute_grad_norm": "every step's gradient norm is logged, and the guard judges by it",
    "zenflow": "it holds updates back where no checkpoint sees them, and needs an optimizer of its own",
}
"""Keys of `zero_optimization` that a run here cannot go with, each with the reason."""
