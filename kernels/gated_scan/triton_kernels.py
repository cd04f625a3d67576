"""The gated scan in Triton: a program steps through one block of tokens, for a few channels and all the inputs.

Long chunks are cut into blocks. `ends_kernel` finds what each block adds to a state that it starts from zero,
`carry_kernel` passes states from block to block, and the scan then starts each block from what reaches it.
"""

from __future__ import annotations

import triton
import triton.language as tl

# ruff: noqa: N803


@triton.jit
def scan_kernel(
    rows: tl.tuple,  # of the gate and then each input: the tensor, elements between rows, channels until it repeats
    before: tl.tuple,  # of each input: [B, C] states before each block; None where they are zero
    states: tl.tuple,  # of each input: [N, C]
    offsets: tl.tensor,  # [B + 1]
    channels: tl.tensor,
    COUNT: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    block, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    running: tl.tuple = ()
    for i in tl.static_range(COUNT):
        running += (_row(before[i], block, channels, channel, TYPE, BLOCK_C),)
    for token in range(tl.load(offsets + block), tl.load(offsets + block + 1)):
        gate = _shared_row(rows[0], token, channels, channel, TYPE)
        stepped: tl.tuple = ()
        for i in tl.static_range(COUNT):
            x = _shared_row(rows[i + 1], token, channels, channel, TYPE)
            state = x + gate * (running[i] - x)
            tl.store(states[i] + token * channels + channel, state, mask=channel < channels)
            stepped += (state,)
        running = stepped


@triton.jit
def _row(
    x: tl.tensor, row: tl.tensor, channels: tl.tensor, channel: tl.tensor, TYPE: tl.constexpr, BLOCK_C: tl.constexpr
) -> tl.tensor:
    """[BLOCK_C]: some channels of a row of x [rows, channels]; zeros where x is None."""
    if x is None:
        return tl.zeros([BLOCK_C], TYPE)
    else:
        return tl.load(x + row * channels + channel, mask=channel < channels, other=0.0).to(TYPE)


@triton.jit
def _shared_row(x: tl.tuple, row: tl.tensor, channels: tl.tensor, channel: tl.tensor, TYPE: tl.constexpr) -> tl.tensor:
    """[BLOCK_C]: some channels of a row that lies once in memory for each `period` channels."""
    base, row_size, period = x
    return tl.load(base + row * row_size + channel % period, mask=channel < channels, other=0.0).to(TYPE)


@triton.jit
def ends_kernel(
    rows: tl.tuple,
    ends: tl.tuple,  # of each input: [B, C] state after each block, from a zero start
    products: tl.tensor,  # [B, C]: product of each block's gates
    offsets: tl.tensor,
    channels: tl.tensor,
    COUNT: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    block, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    product = tl.full([BLOCK_C], 1.0, TYPE)
    running: tl.tuple = ()
    for _ in tl.static_range(COUNT):
        running += (tl.zeros([BLOCK_C], TYPE),)
    for token in range(tl.load(offsets + block), tl.load(offsets + block + 1)):
        gate = _shared_row(rows[0], token, channels, channel, TYPE)
        product *= gate
        stepped: tl.tuple = ()
        for i in tl.static_range(COUNT):
            x = _shared_row(rows[i + 1], token, channels, channel, TYPE)
            stepped += (x + gate * (running[i] - x),)
        running = stepped
    for i in tl.static_range(COUNT):
        tl.store(ends[i] + block * channels + channel, running[i], mask=channel < channels)
    tl.store(products + block * channels + channel, product, mask=channel < channels)


@triton.jit
def starts_kernel(
    gate: tl.tuple,
    grads: tl.tuple,  # of each input: [N, C] gradients of the states
    starts: tl.tuple,  # of each input: [B, C] gradient that leaves each block for the one before it, if none enters it
    offsets: tl.tensor,
    channels: tl.tensor,
    COUNT: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    block, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first, stop = tl.load(offsets + block), tl.load(offsets + block + 1)
    running: tl.tuple = ()
    for _ in tl.static_range(COUNT):
        running += (tl.zeros([BLOCK_C], TYPE),)
    for back in range(0, stop - first):
        token = stop - 1 - back
        g = _shared_row(gate, token, channels, channel, TYPE)
        stepped: tl.tuple = ()
        for i in tl.static_range(COUNT):
            stepped += ((running[i] + _row(grads[i], token, channels, channel, TYPE, BLOCK_C)) * g,)
        running = stepped
    for i in tl.static_range(COUNT):
        tl.store(starts[i] + block * channels + channel, running[i], mask=channel < channels)


@triton.jit
def carry_kernel(
    own: tl.tuple,  # of each input: [B, C] what each block adds
    products: tl.tensor,  # [B, C]
    reaching: tl.tuple,  # of each input: [B, C] what reaches each block from its neighbours
    members: tl.tensor,  # [K + 1]
    channels: tl.tensor,
    COUNT: tl.constexpr,
    BACKWARD: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    chunk, channel = tl.program_id(0), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first, stop = tl.load(members + chunk), tl.load(members + chunk + 1)
    running: tl.tuple = ()
    for _ in tl.static_range(COUNT):
        running += (tl.zeros([BLOCK_C], TYPE),)
    for step in range(0, stop - first):
        block = stop - 1 - step if BACKWARD else first + step
        product = _row(products, block, channels, channel, TYPE, BLOCK_C)
        stepped: tl.tuple = ()
        for i in tl.static_range(COUNT):
            tl.store(reaching[i] + block * channels + channel, running[i], mask=channel < channels)
            stepped += (running[i] * product + _row(own[i], block, channels, channel, TYPE, BLOCK_C),)
        running = stepped


@triton.jit
def scan_back_kernel(
    rows: tl.tuple,
    states: tl.tuple,
    grads: tl.tuple,
    after: tl.tuple,  # of each input: [B, C] gradient that reaches each block's last state; None where it is zero
    grad_gate: tl.tensor,  # [N, C]
    grad_inputs: tl.tuple,  # of each input: [N, C]
    offsets: tl.tensor,
    begins: tl.tensor,  # [B]: the first token of each block's chunk
    channels: tl.tensor,
    COUNT: tl.constexpr,
    TYPE: tl.constexpr,
    BLOCK_C: tl.constexpr,
) -> None:
    """adjoint[t] = grad[t] + g[t+1] adjoint[t+1];  d input = (1 - g) adjoint;  d gate = adjoint (state[t-1] - input).

    The gradient of the gate is the sum over the inputs.
    """
    block, channel = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < channels
    first, stop, begin = tl.load(offsets + block), tl.load(offsets + block + 1), tl.load(begins + block)
    running: tl.tuple = ()
    for i in tl.static_range(COUNT):
        running += (_row(after[i], block, channels, channel, TYPE, BLOCK_C),)
    for back in range(0, stop - first):
        token = stop - 1 - back
        gate = _shared_row(rows[0], token, channels, channel, TYPE)
        slope = tl.zeros([BLOCK_C], TYPE)
        stepped: tl.tuple = ()
        for i in tl.static_range(COUNT):
            adjoint = running[i] + _row(grads[i], token, channels, channel, TYPE, BLOCK_C)
            x = _shared_row(rows[i + 1], token, channels, channel, TYPE)
            previous = _row(states[i], tl.maximum(token - 1, begin), channels, channel, TYPE, BLOCK_C)
            slope += adjoint * (tl.where(token > begin, previous, 0.0) - x)
            carried = gate * adjoint
            tl.store(grad_inputs[i] + token * channels + channel, adjoint - carried, mask=inside)
            stepped += (carried,)
        tl.store(grad_gate + token * channels + channel, slope, mask=inside)
        running = stepped
