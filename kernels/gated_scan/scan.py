"""The gated scan as a loop over the steps of all chunks at once; long chunks in two levels.

Two levels: each block of a long chunk first finds its last state from a zero start and the product of its gates, a
short loop over blocks carries the states across, and a second pass starts from them. Only products of gates occur,
never quotients or logarithms, so gates of 0 and 1 are fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.gated_scan.chunks import Chunks, Layout
from kernels.precision import at_least_float32

Carries = list[Tensor]  # per input [blocks, ...], in the order of the layout's steps


def loop_scan(gate: Tensor, inputs: Sequence[Tensor], chunks: Chunks) -> tuple[Tensor, ...]:
    """Same shapes and result as `gated_scan`."""
    states: tuple[Tensor, ...] = _GatedScan.apply(chunks, gate, *inputs)  # type: ignore[no-untyped-call]
    return states


class _GatedScan(torch.autograd.Function):
    """apply(chunks, gate, *inputs) -> states, all [N, ...]."""

    @staticmethod
    def forward(ctx: Any, chunks: Chunks, gate: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        wide = at_least_float32(gate.dtype)
        states = tuple(torch.empty(x.shape, dtype=wide, device=x.device) for x in inputs)
        products, before = _carry_forward(chunks, gate, inputs, wide)
        _scan(chunks.layout, gate, inputs, before, states)
        ctx.chunks, ctx.count = chunks, len(inputs)
        ctx.save_for_backward(gate, *inputs, *states, products, *before)
        return states

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, *saved = ctx.saved_tensors
        count, wide = ctx.count, grads[0].dtype
        inputs, states, products, before = saved[:count], saved[count : 2 * count], saved[2 * count], saved[-count:]
        after = _carry_back(ctx.chunks, gate, grads, products)
        grad_gate = torch.empty(gate.shape, dtype=wide, device=gate.device)
        grad_inputs = [torch.empty(x.shape, dtype=wide, device=x.device) for x in inputs]
        _scan_back(ctx.chunks.layout, gate, inputs, states, before, grads, after, grad_gate, grad_inputs)
        return None, grad_gate.to(gate.dtype), *(grad.to(x.dtype) for grad, x in zip(grad_inputs, inputs, strict=True))


def _scan(layout: Layout, gate: Tensor, inputs: Sequence[Tensor], before: Carries, states: Sequence[Tensor]) -> None:
    """Fills `states`, starting each block from `before`."""
    previous = list(before)
    for step in range(layout.num_steps):
        count, wide = layout.count(step), states[0].dtype
        g = layout.take(gate, step).to(wide)
        for i, (x, out) in enumerate(zip(inputs, states, strict=True)):
            state = layout.target(out, step, count)
            torch.lerp(layout.take(x, step).to(wide), previous[i][:count], g, out=state)
            layout.put(out, step, state)
            previous[i] = state


def _scan_back(
    layout: Layout,
    gate: Tensor,
    inputs: Sequence[Tensor],
    states: Sequence[Tensor],
    before: Carries,
    grads: Sequence[Tensor],
    after: Carries,
    grad_gate: Tensor,
    grad_inputs: Sequence[Tensor],
) -> None:
    """Fills `grad_gate` and `grad_inputs`; `after` is the gradient that reaches each block's last state from behind.

    adjoint[t] = grad[t] + g[t+1] adjoint[t+1];  d input = (1 - g) adjoint;  d gate = adjoint (state[t-1] - input).
    """
    for step in reversed(range(layout.num_steps)):
        count, wide = layout.count(step), grad_gate.dtype
        g, grad_g = layout.take(gate, step).to(wide), layout.target(grad_gate, step, count)
        for i, x in enumerate(inputs):
            adjoint = layout.take(grads[i], step) + after[i][:count]
            carry = torch.mul(g, adjoint, out=after[i][:count])
            grad_x = layout.target(grad_inputs[i], step, count)
            layout.put(grad_inputs[i], step, torch.sub(adjoint, carry, out=grad_x))
            previous = layout.take(states[i], step - 1, count) if step else before[i]
            change = previous - layout.take(x, step)
            if i == 0:
                torch.mul(adjoint, change, out=grad_g)
            else:
                grad_g.addcmul_(adjoint, change)
        layout.put(grad_gate, step, grad_g)


def _carry_forward(chunks: Chunks, gate: Tensor, inputs: Sequence[Tensor], wide: torch.dtype) -> tuple[Tensor, Carries]:
    """(product of the gates of each block, the states before each block); zeros where every chunk is one block."""
    layout, blocks = chunks.layout, chunks.block_layout
    ends = [gate.new_zeros((layout.num_segments, *gate.shape[1:]), dtype=wide) for _ in inputs]
    products = torch.ones_like(ends[0])
    if blocks is None:
        return products[:0], ends
    for step in range(layout.num_steps):
        count = layout.count(step)
        g = layout.take(gate, step).to(wide)
        products[:count] *= g
        for x, end in zip(inputs, ends, strict=True):
            torch.lerp(layout.take(x, step).to(wide), end[:count], g, out=end[:count])
    products = layout.unsort(products)
    return products, [layout.sort(_carry(blocks, layout.unsort(end), products, forward=True)) for end in ends]


def _carry_back(chunks: Chunks, gate: Tensor, grads: Sequence[Tensor], products: Tensor) -> Carries:
    """The gradient that reaches the last state of each block from the blocks behind it."""
    layout, blocks = chunks.layout, chunks.block_layout
    firsts = [grad.new_zeros((layout.num_segments, *gate.shape[1:])) for grad in grads]
    if blocks is None:
        return firsts
    for step in reversed(range(layout.num_steps)):
        count = layout.count(step)
        g = layout.take(gate, step).to(products.dtype)
        for grad, first in zip(grads, firsts, strict=True):
            active = first[:count]
            active.add_(layout.take(grad, step)).mul_(g)
    return [layout.sort(_carry(blocks, layout.unsort(first), products, forward=False)) for first in firsts]


def _carry(blocks: Layout, own: Tensor, products: Tensor, forward: bool) -> Tensor:
    """What reaches each block from its neighbours: own[n] + products[n] * reaching[n], n the neighbour before/behind.

    own, products: [blocks, ...] in stream order, as is the result.
    """
    reaching = torch.zeros_like(own)
    carry = own.new_zeros((blocks.num_segments, *own.shape[1:]))
    steps = range(1, blocks.num_steps)
    for step in steps if forward else reversed(steps):
        source, target = (step - 1, step) if forward else (step, step - 1)
        count = blocks.count(step)
        active = carry[:count]
        active.mul_(blocks.take(products, source, count)).add_(blocks.take(own, source, count))
        rows = blocks.target(reaching, target, count).copy_(active)
        blocks.put(reaching, target, rows)
    return reaching
