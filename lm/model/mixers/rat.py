"""RAT (arXiv 2507.04416): a gated recurrence inside chunks, softmax attention over the chunks' final states.

Inside a chunk of L tokens keys and values are averaged by a gate per channel,

    k~_t = g_t * k~_{t-1} + (1 - g_t) * k_t,        v~_t = g_t * v~_{t-1} + (1 - g_t) * v_t,

starting from zero in every chunk. A query sees the final states of all finished chunks of its document and the
running state of its own chunk, which counts once. Rotary angles follow the chunk index, so the score of the own
chunk needs no rotation. There are few distinct queries and keys (`qk_groups`); head h uses group h mod qk_groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kernels.gated_scan import Chunks, gated_scan
from kernels.gated_scan.chunk_states import chunk_states
from kernels.interval_attention import interval_attention
from kernels.interval_attention.slots import Slots, attend_slots
from kernels.precision import at_least_float32
from lm.model.cache import KeyValues, MixerCache
from lm.model.carried_state import add_carried, opening_ranks
from lm.model.documents import Documents, KeyList, Share, Visible
from lm.model.kernel_calls import Call, attention_call, scan_call
from lm.model.mixers.base import Dimensions, Mixer, MixerOptions
from lm.model.rope import RopeScaling, rotate, shared_table


class RatOptions(MixerOptions):
    """Chunked recurrence with attention over chunks."""

    kind: Literal["rat"] = "rat"
    chunk_size: int = Field(16, ge=1, description="Tokens per chunk L; 1 is gated attention, a huge one is an RNN.")
    qk_groups: int = Field(2, ge=1, description="Distinct query and key projections, shared by all heads in turn.")
    positions: Literal["chunk", "token", "none"] = Field(
        "chunk", description="Rotary angle by chunk index (the paper's), by token index, or no rotation (NoPE)."
    )
    rope_theta: float | None = Field(None, gt=0, description="Base of the rotary angles; none takes the model's.")
    rope_scaling: RopeScaling | None = Field(
        None, description="Stretches the rotary angles; its old context counts what `positions` counts."
    )

    def check(self, dimensions: Dimensions) -> None:
        heads = dimensions.num_attention_heads
        if heads % self.qk_groups:
            raise ValueError(f"qk_groups {self.qk_groups} must divide num_attention_heads {heads}")

    def attention_call(self, dimensions: Dimensions, dtype: torch.dtype, device: torch.device) -> Call:
        heads = dimensions.num_attention_heads
        return attention_call(heads, heads, dimensions.head_dim, dtype, device, own_entry=True)

    def scan_call(self, dimensions: Dimensions, dtype: torch.dtype, device: torch.device) -> Call:
        return scan_call(dimensions.num_attention_heads, self.qk_groups, dimensions.head_dim, dtype, device)

    @property
    def extent(self) -> str:
        return f"chunk {self.chunk_size}"


class Rat(Mixer[RatOptions]):
    """RAT mixer with 4 D^2 + 2 qk_groups head_dim D + D parameters where D = heads x head_dim = hidden_size."""

    options_class = RatOptions

    def __init__(self, options: RatOptions, dimensions: Dimensions) -> None:
        super().__init__(options, dimensions)
        self.heads, self.head_dim = dimensions.num_attention_heads, dimensions.head_dim
        # The own chunk's rotation cancels, except for what a scaling multiplies cosine and sine by.
        scaling = options.rope_scaling if options.positions != "none" else None
        self.own_scale = self.head_dim**-0.5 * (1.0 if scaling is None else scaling.amplitude**2)
        hidden, width = dimensions.hidden_size, self.heads * self.head_dim
        self.q_proj = nn.Linear(hidden, options.qk_groups * self.head_dim, bias=False)
        self.k_proj = nn.Linear(hidden, options.qk_groups * self.head_dim, bias=False)
        self.v_proj = nn.Linear(hidden, width, bias=False)
        self.forget_proj = nn.Linear(hidden, width, bias=True)
        self.output_gate_proj = nn.Linear(hidden, width, bias=False)
        self.o_proj = nn.Linear(width, hidden, bias=False)

    def init_weights(self, std: float) -> None:
        """Gates start with a half-life spread over the chunk: sigmoid(bias) = u / (1 + u), u in [1, L - 1]."""
        super().init_weights(std)
        with torch.no_grad():
            nn.init.uniform_(self.forget_proj.bias, 1.0, max(1.0, self.options.chunk_size - 1.0))
            self.forget_proj.bias.log_()

    def forward(self, x: Tensor, documents: Documents, cache: MixerCache | None = None) -> Tensor:
        q, k = (proj(x).unflatten(1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj))
        v, forget = (proj(x).unflatten(1, (-1, self.head_dim)) for proj in (self.v_proj, self.forget_proj))
        share = documents.share if documents.share is not None and documents.share.by_heads(self) else None
        if share is not None:
            q, k, v, forget = self._to_heads(q, k, v, forget, share)
            documents = share.stream
        gate = torch.sigmoid(forget.to(at_least_float32(x.dtype)))
        mixed = self.attend(q, k, v, gate, documents, cache)
        if share is not None:
            mixed = share.to_tokens(mixed)
        out: Tensor = self.o_proj(torch.sigmoid(self.output_gate_proj(x)) * mixed.to(x.dtype).flatten(1))
        return out

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, documents: Documents, cache: MixerCache | None = None
    ) -> Tensor:
        """All between the projections: q, k [N, groups, D]; v, gate [N, heads, D], head h with group h mod groups."""
        heads = v.shape[1]
        if cache is not None and documents.one_each:
            return self._step(q, _repeat(k, heads), v, gate, documents, cache)
        own_query, key_list = q * self.own_scale, self._final_list(documents)
        if cache is None and documents.share is None:
            tokens = self._final_tokens(documents)
            own_score, v_run, keys, values = chunk_states(gate, own_query, k, v, self._chunks(documents), tokens)
            keys, values = self._rotate(keys, documents, tokens).to(v.dtype), values.to(v.dtype)
        else:
            # Heads as [heads / groups, groups]: head h of the flat order then uses group h mod groups.
            v, gate = (s.unflatten(1, (-1, q.shape[1])) for s in (v, gate))
            k = k[:, None].expand_as(v)
            if cache is None:
                k_run, v_run, keys, values = self._shared_scan(k, v, gate, documents)
            else:
                k_run, v_run = self._continued_scan(k, v, gate, documents, cache)
                self._store(k_run, v_run, documents, cache, v.dtype)
                keys, values = (entries.to(v.dtype) for entries in cache.buffers[0].read(key_list.first, key_list.last))
            own_query = own_query.to(k_run.dtype)[:, None]
            own_score = (k_run.unflatten(1, (-1, q.shape[1])) * own_query).sum(-1).flatten(1)
        intervals = documents.memo(
            (self.options, self.dimensions, heads),
            lambda: documents.intervals(self.visible(documents).of_heads(range(heads)), key_list),
        )
        queries, v_run = _repeat(self._rotate(q, documents), heads), v_run.to(v.dtype)
        return interval_attention(queries, keys, values, intervals, extra_score=own_score, extra_value=v_run)[0]

    def _shared_scan(self, k: Tensor, v: Tensor, gate: Tensor, documents: Documents) -> tuple[Tensor, ...]:
        """Running states of this rank's tokens, and keys and values of the finals they see, whichever rank has them."""
        share = documents.share
        assert share is not None
        runs = tuple(s.flatten(1, 2) for s in gated_scan(gate, (k, v), self._chunks(documents)))
        k_run, v_run = add_carried(runs, gate.flatten(1, 2), self.options.chunk_size, documents)
        finals = self._entries(k_run, v_run, documents, self._final_tokens(documents), v.dtype)
        return k_run, v_run, *share.fetch(finals, *self._first_and_owned(share.stream, share.bounds))

    def visible(self, documents: Documents) -> Visible:
        position = documents.position
        finished = position.div(self.options.chunk_size, rounding_mode="floor")
        return Visible(torch.zeros_like(position)[None], finished, (self.heads,))

    def scores(self, documents: Documents) -> Tensor:
        return super().scores(documents) + self.heads

    def earliest(self, documents: Documents, below: Tensor) -> Tensor:
        return below[documents.cu_seqlens[:-1][documents.document]]

    def new_cache(self, rows: int, dtype: torch.dtype, device: torch.device) -> MixerCache:
        running = torch.zeros(rows, self.heads, self.head_dim, dtype=at_least_float32(dtype), device=device)
        finals = KeyValues(rows, self.heads, self.head_dim, None, dtype, device)
        return MixerCache([finals], {"running_key": running, "running_value": running.clone()})

    @property
    def croppable(self) -> bool:
        return False

    def crop(self, cache: MixerCache, before: Tensor, after: Tensor) -> None:
        size = self.options.chunk_size
        if bool(((after % size != 0) & (after < before)).any()):
            raise ValueError(f"a recurrence over chunks of {size} tokens can only be cut back to a multiple of {size}")
        cache.buffers[0].crop(*(tokens.add(size - 1).div(size, rounding_mode="floor") for tokens in (before, after)))

    def cache_bytes(self, length: int, dtype: torch.dtype) -> int:
        finals = math.ceil(length / self.options.chunk_size)
        per_entry = 2 * self.heads * self.head_dim
        return per_entry * (finals * dtype.itemsize + at_least_float32(dtype).itemsize)

    def _chunks(self, documents: Documents) -> Chunks:
        size = self.options.chunk_size

        def build() -> Chunks:
            begins = documents.position % size == 0
            begins[:1] = True  # the first chunk may have begun on another rank
            starts = torch.nonzero(begins).flatten()
            return Chunks(torch.cat((starts, starts.new_tensor([documents.num_tokens]))))

        return documents.memo(("chunks", size), build)

    def _final_tokens(self, documents: Documents) -> Tensor:
        """[M] int64: the tokens that finish a chunk."""
        size = self.options.chunk_size
        return documents.memo(("finals", size), lambda: torch.nonzero(documents.position % size == size - 1).flatten())

    def _final_list(self, documents: Documents) -> KeyList:
        past, total = (
            tokens.div(self.options.chunk_size, rounding_mode="floor") for tokens in (documents.past, documents.total)
        )
        return KeyList(torch.zeros_like(past), past, total)

    def _to_heads(self, q: Tensor, k: Tensor, v: Tensor, forget: Tensor, share: Share) -> tuple[Tensor, ...]:
        """All tokens of this rank's heads, with the groups that these use, repeated where they are too few."""
        repeat = math.lcm(q.shape[1], share.ranks) // q.shape[1]
        return share.to_heads(q.repeat(1, repeat, 1), k.repeat(1, repeat, 1), v, forget)

    def head_values(self, ranks: int) -> tuple[int, int] | None:
        groups = math.lcm(self.options.qk_groups, ranks)
        if self.heads % groups:
            return None
        return (2 * groups + 2 * self.heads) * self.head_dim, self.heads * self.head_dim

    def neighbour_bytes(self, stream: Documents, bounds: Sequence[int], dtype: torch.dtype) -> list[int]:
        values, states = self.heads * self.head_dim, at_least_float32(dtype).itemsize
        opening = opening_ranks(stream, bounds, self.options.chunk_size)
        finals = zip(*self._first_and_owned(stream, bounds), strict=False)
        return [
            values * (3 * (rank - opened) * states + 2 * (owned - first) * dtype.itemsize)
            for rank, (opened, (first, owned)) in enumerate(zip(opening, finals, strict=True))
        ]

    def _first_and_owned(self, stream: Documents, bounds: Sequence[int]) -> tuple[list[int], list[int]]:
        """Of all finals of a stream: the first that each rank needs, and how many lie before each of the bounds."""
        size = self.options.chunk_size

        def build() -> tuple[list[int], list[int]]:
            owned = torch.searchsorted(self._final_tokens(stream), torch.tensor(bounds, device=stream.lengths.device))
            finished = stream.position[list(bounds[:-1])].div(size, rounding_mode="floor")
            return (owned[:-1] - finished).tolist(), owned.tolist()

        return stream.memo(("first and owned", size), build)

    def _entries(
        self, k_run: Tensor, v_run: Tensor, documents: Documents, tokens: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Rotated keys and values [n, heads, head_dim] of the running states after the given tokens [n]."""
        return self._rotate(k_run[tokens], documents, tokens).to(dtype), v_run[tokens].to(dtype)

    def _rotate(self, x: Tensor, documents: Documents, tokens: Tensor | None = None) -> Tensor:
        """Rotates x [n, heads, head_dim], which belongs to the given tokens of the stream, or to all."""
        if self.options.positions == "none":
            return x
        unit = self.options.chunk_size if self.options.positions == "chunk" else 1
        theta = self.options.rope_theta or self.dimensions.rope_theta
        dtype, scaling = at_least_float32(x.dtype), self.options.rope_scaling
        cos, sin = shared_table(documents, self.head_dim, theta, dtype, scaling, unit)
        return rotate(x, (cos, sin) if tokens is None else (cos[tokens], sin[tokens]))

    def _continued_scan(
        self, k: Tensor, v: Tensor, gate: Tensor, documents: Documents, cache: MixerCache
    ) -> tuple[Tensor, Tensor]:
        """The scan where documents go on inside a chunk: the running state enters as a token with gate 0."""
        size = self.options.chunk_size
        opens = (documents.past % size != 0) & (documents.lengths > 0)
        carried = torch.nonzero(opens).flatten()
        starts = documents.position % size == 0
        place = torch.arange(documents.num_tokens, device=k.device) + torch.cumsum(opens, 0)[documents.document]
        entry = documents.cu_seqlens[:-1][carried] + torch.arange(len(carried), device=k.device)
        offsets = torch.cat((place[starts], entry)).sort().values
        chunks = Chunks(torch.cat((offsets, offsets.new_tensor([len(place) + len(carried)]))))

        def spread(tokens: Tensor, states: Tensor) -> Tensor:
            wide = torch.empty(len(place) + len(carried), *tokens.shape[1:], dtype=gate.dtype, device=k.device)
            wide[place], wide[entry] = tokens.to(gate.dtype), states
            return wide

        shape = k.shape[1:]
        inputs = tuple(
            spread(tokens, cache.states[name][carried].unflatten(1, shape[:2]))
            for tokens, name in ((k, "running_key"), (v, "running_value"))
        )
        k_run, v_run = gated_scan(spread(gate, gate.new_zeros(len(carried), *shape)), inputs, chunks)
        return k_run.index_select(0, place).flatten(1, 2), v_run.index_select(0, place).flatten(1, 2)

    def _store(self, k_run: Tensor, v_run: Tensor, documents: Documents, cache: MixerCache, dtype: torch.dtype) -> None:
        """Keeps the finals of this stream, each document's running state, and that in its chunk's slot too."""
        present = torch.nonzero(documents.lengths > 0).flatten()
        last = documents.cu_seqlens[1:][present] - 1
        cache.states["running_key"][present] = k_run[last]
        cache.states["running_value"][present] = v_run[last]
        kept = torch.cat((self._final_tokens(documents), last)).unique()
        entry = documents.position[kept].div(self.options.chunk_size, rounding_mode="floor")
        entries = self._entries(k_run, v_run, documents, kept, dtype)
        total = (documents.total + self.options.chunk_size - 1).div(self.options.chunk_size, rounding_mode="floor")
        cache.buffers[0].write(*entries, documents.document[kept], entry, total)

    def _step(self, q: Tensor, k: Tensor, v: Tensor, gate: Tensor, documents: Documents, cache: MixerCache) -> Tensor:
        """One token per row: the running state takes the slot of its chunk, so it is attended like a final."""
        position, size = documents.position, self.options.chunk_size
        carry = gate * (position % size != 0)[:, None, None]
        for name, x in (("running_key", k), ("running_value", v)):
            cache.states[name] = carry * cache.states[name] + (1 - gate) * x
        finals = cache.buffers[0]
        slots = documents.memo(("chunk slots", size), lambda: Slots(position.div(size, rounding_mode="floor") + 1))
        key = self._rotate(cache.states["running_key"], documents).to(v.dtype)
        value = cache.states["running_value"].to(v.dtype)
        finals.write(key, value, documents.document, slots.used - 1, slots.used)
        return attend_slots(_repeat(self._rotate(q, documents), self.heads), finals.keys, finals.values, slots)


def _repeat(x: Tensor, heads: int) -> Tensor:
    """Queries of the groups [N, groups, head_dim] for every head, group h mod groups for head h."""
    return x.repeat(1, heads // x.shape[1], 1)
