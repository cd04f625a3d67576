"""Which weights of a base are trained: low-rank adapters, and embeddings and norms whole (LongLoRA's recipe).

Weights that are trained whole are trained in place, without peft's second copy of the embedding; peft's own form is
made when an adapter is exported.
"""

from __future__ import annotations

import warnings

from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from lm.errors import UserError, did_you_mean
from lm.extend.options import LearningRates, LoraOptions


def add_adapters(model: PreTrainedModel, lora: LoraOptions, *, copies: bool = False) -> PeftModel:
    """Freezes `model`, puts adapters into it, and makes trainable what `lora` names. A new adapter changes nothing.

    copies: train copies of embeddings and norms, as peft saves them, instead of the weights themselves.
    Raises UserError for targets that the model does not have or that cannot have an adapter.
    """
    whole = whole_modules(model, lora)
    tied = copies and lora.embeddings and model.config.tie_word_embeddings
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=sorted(target_names(model, lora)),
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        modules_to_save=whole or None if copies else None,
        ensure_weight_tying=tied,
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is going away
        peft_model = get_peft_model(model, config, autocast_adapter_dtype=False)
    if not copies:
        for name in whole:
            model.get_submodule(name).requires_grad_(True)
    return peft_model


def target_names(model: PreTrainedModel, lora: LoraOptions) -> set[str]:
    """The last names of the linear layers that get an adapter."""
    head = model.get_output_embeddings()
    known = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }
    if lora.targets == "all-linear":
        return known
    for name in lora.targets:
        if name not in known:
            reason = "the base has no such linear layer"
            if any(name == full.rpartition(".")[2] for full, _ in model.named_modules()):
                reason = "adapters go on linear layers other than the output head (lora.embeddings trains those whole)"
            raise UserError(
                f"lora.targets: '{name}': {reason}.{did_you_mean(name, known)} It has: {', '.join(sorted(known))}"
            )
    return set(lora.targets)


def whole_modules(model: PreTrainedModel, lora: LoraOptions) -> list[str]:
    """Full names of the modules that are trained whole."""
    embedding = model.get_input_embeddings()
    return [
        name
        for name, module in model.named_modules()
        if (lora.embeddings and module is embedding) or (lora.norms and is_norm(module))
    ]


def is_norm(module: nn.Module) -> bool:
    """Whether this is a norm with weights of its own, whatever its class is called."""
    parameters = list(module.parameters())
    return "norm" in type(module).__name__.lower() and bool(parameters) and all(p.ndim == 1 for p in parameters)


def learning_rate_factors(model: nn.Module, rates: LearningRates, peak: float) -> dict[str, float]:
    """By name of each trained parameter, its learning rate over `peak`, the run's."""
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}

    def rate(name: str, parameter: nn.Parameter) -> float | None:
        if ".lora_A." in name:
            return rates.a
        if ".lora_" in name:
            return rates.b
        return rates.embeddings if id(parameter) in embeddings else rates.norms

    trained = ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)
    return {name: (rate(name, parameter) or peak) / peak for name, parameter in trained}
