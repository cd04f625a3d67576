"""Which top-level keys DeepSpeed's configuration knows, and which of them other keys of the run file decide.

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
    "optimizer": "optimizer",
    "scheduler": "optimizer.schedule",
    "steps_per_print": "log.every",
    "tensorboard": "log",
    "wandb": "log.wandb",
    "csv_monitor": "log",
    "comet": "log",
    "checkpoint": "train.checkpoint_every",
    "zero_allow_untested_optimizer": "optimizer.kind",
}
"""Keys that the trainer sets itself, each with the key of the run file that decides it."""

PASSED_THROUGH = frozenset(
    {
        "activation_checkpointing",
        "aio",
        "autotuning",
        "comms_logger",
        "communication_data_type",
        "compile",
        "compression_training",
        "data_efficiency",
        "data_types",
        "dataloader_drop_last",
        "datastates_ckpt",
        "disable_allgather",
        "disable_python_gc",
        "dump_state",
        "expert_parallel",
        "flops_profiler",
        "gradient_allreduce_op",
        "gradient_predivide_factor",
        "hybrid_engine",
        "log_level",
        "memory_breakdown",
        "pipeline",
        "prescale_gradients",
        "seq_parallel_communication_data_type",
        "tensor_parallel",
        "timers",
        "use_data_before_expert_parallelism",
        "wall_clock_breakdown",
        "weight_quantization",
        "zero_force_ds_cpu_optimizer",
        "zero_optimization",
    }
)
