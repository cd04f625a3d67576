"""A pretrained model in the trainer's form: a flat stream of documents in, the summed loss out."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from kernels.linear_cross_entropy import CrossEntropy
from lm.data.fingerprint import digest
from lm.errors import UserError
from lm.extend.attention import set_attention
from lm.hf import BraidForCausalLM
from lm.model.decoder import Head
from lm.model.documents import Documents

PROBE_LENGTHS = (7, 4)


class ExtendedModel(nn.Module):
    """A Hugging Face causal model behind the forward of `LanguageModel`. Layers are recomputed in backward."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        weight = model.get_output_embeddings().weight
        with torch.device("meta"):
            self.head = Head(weight.shape[1], weight.shape[0])
        # A module of its own for the loss reads the head's weight where ZeRO-3 has gathered it.
        self.head.weight = weight
        model.activation_checkpointing_enable()

    def forward(self, tokens: Tensor, documents: Documents, targets: Tensor | None = None) -> Tensor | CrossEntropy:
        """Logits [N, vocab_size] of tokens [N] int64, or the summed loss where targets [N] int64 (-100: none) are.

        The whole logits never exist where only the loss is asked for.
        """
        out = self.model.base_model(
            input_ids=tokens[None], position_ids=documents.position[None], use_cache=False, documents=documents
        )
        result: Tensor | CrossEntropy = self.head(out[0][0], targets)
        return result


def extended(model: PreTrainedModel, group_size: int | None) -> ExtendedModel:
    """`model`, attending within groups of `group_size` in training, or to everything where that is None.

    Raises UserError for a model that does more between tokens and logits than the trainer does.
    """
    model.eval()
    tokens = torch.arange(sum(PROBE_LENGTHS), device=model.device) % model.config.vocab_size
    with torch.no_grad():
        expected = [model(part[None], use_cache=False).logits[0] for part in tokens.split(PROBE_LENGTHS)]
    attention = None if isinstance(model, BraidForCausalLM) else set_attention(model, group_size)
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise UserError(f"base.path: {_name(model)} has a bias on its output head, which is not handled")
    result = ExtendedModel(model).eval()
    with torch.no_grad():
        found = result(tokens, Documents.from_lengths(PROBE_LENGTHS, device=tokens.device))
    if attention is not None and (calls := len(attention.called_by)) != model.config.num_hidden_layers:
        raise UserError(
            f"base.path: only {calls} of the {model.config.num_hidden_layers} layers of {_name(model)} use "
            "transformers' attention interface, so their attention cannot be replaced"
        )
    logits = torch.cat(expected).float()
    difference = (found.float() - logits).abs().max() / logits.abs().max()
    if not difference <= (1e-3 if found.dtype == torch.float32 else 5e-2):
        raise UserError(
            f"base.path: {_name(model)} gives other logits than causal attention and a plain output head do "
            f"(by {difference:.1%}): something in it is not handled"
        )
    return result


def fingerprint(model: nn.Module) -> str:
    """Names the weights that are not trained: equal for equal values, whatever file they came from."""
    sums = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            # As integers, so that the sum does not depend on its order, and bf16, so that it does not on precision.
            values = parameter.detach().flatten()
            bits = values.bfloat16().view(torch.int16) if values.is_floating_point() else values
            sums.append([name, list(parameter.shape), int(bits.sum(dtype=torch.int64))])
    return digest(sums) if sums else ""


def _name(model: PreTrainedModel) -> str:
    return type(model).__name__
