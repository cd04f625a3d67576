"""torch.compile for what a layer does besides mixing: residual sums, norms and the MLP, in one graph.

Mixers are left out. Their kernels are no operations that a compiler can look into, and what they plan depends on the
documents of a batch, so a graph would break many times in each layer. What is left has no such place: it is compiled
once for all layers and lengths, and asked to be one whole graph, so that a break is an error instead of a slow step.
"""

from __future__ import annotations

import os
import shutil
from functools import partial

import torch
from torch import nn

from lm.errors import UserError
from lm.model.block import Block

BACKEND = "inductor"


def require_compiler(wanted: bool) -> None:
    """Raises UserError where this machine lacks what torch.compile makes code with."""
    compiler = os.environ.get("CXX", "g++")
    if wanted and not torch.cuda.is_available() and shutil.which(compiler) is None:
        raise UserError(f"train.compile: on a CPU it needs a C++ compiler, and there is no {compiler}: set it to false")


def compile_layers(model: nn.Module, wanted: bool) -> None:
    """Makes the layers of `model` use compiled code from their next forward on, if `wanted`."""
    if not wanted:
        return
    join = torch.compile(Block.join, dynamic=True, fullgraph=True, backend=BACKEND)
    for module in model.modules():
        if isinstance(module, Block):
            module.join = partial(join, module)  # type: ignore[method-assign]
