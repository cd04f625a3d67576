"""Width transfer: what was tuned on a narrow model, carried over to a wide one.

The maximal update parametrisation for Adam (arXiv 2203.03466, table 8, without multipliers in the forward pass).
Where a model is m times as wide as the one that was tuned, matrices begin sqrt(m) times smaller and learn m times
slower, the head begins m times smaller and learns m times slower, and embeddings, norms, biases and convolutions stay.
Muon's updates have a spectral norm that grows with sqrt(m) alone, so its matrices learn sqrt(m) times slower. Attention
heads are to be of the same size in both models, so that the wide one has more of them.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from lm.model.decoder import Head, LanguageModel
from lm.train.optimizer_options import OptimizerOptions


def carry_over(model: LanguageModel, options: OptimizerOptions) -> dict[str, float]:
    """Scales fresh weights; the learning rates over the run's, by name of parameter, where they are not 1."""
    if options.base_width is None:
        return {}
    times = model.options.hidden_size / options.base_width
    slower = math.sqrt(times) if options.kind == "muon" else times
    factors = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Head):
            head = isinstance(module, Head)
            factors[f"{name}.weight"] = 1 / (times if head else slower)
            if not module.weight.is_meta:
                with torch.no_grad():
                    module.weight.div_(times if head else math.sqrt(times))
    return factors
