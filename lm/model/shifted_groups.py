"""The rule of shifted-short attention (LongLoRA's S2-Attn, arXiv 2309.12307), causal by construction.

A document is cut into groups of G tokens; queries see only their own group's earlier tokens. The second half of the
heads cuts the document half a group earlier, so that information passes between groups. Nothing wraps round: the
published roll lets the first tokens of a row see its last ones.
"""

from __future__ import annotations

import torch

from lm.model.documents import Documents, Visible


def shifted_visible(documents: Documents, group_size: int, kv_heads: int) -> Visible:
    """What queries see when the first half of `kv_heads` (an even number) stands still and the second half shifts.

    A document that fits into one group is not cut: the shifted heads would split it for nothing.
    """
    position = documents.position
    shift = torch.where(documents.whole > group_size, group_size // 2, 0)[documents.document]
    first = torch.stack(
        [
            (position + s).div(group_size, rounding_mode="floor") * group_size - s
            for s in (torch.zeros_like(shift), shift)
        ]
    )
    return Visible(first, position + 1, (kv_heads // 2, kv_heads - kv_heads // 2))


def halved_kv_heads(kv_heads: int, heads: int) -> int:
    """Key/value heads that the two halves divide; an odd number is first repeated for every query head."""
    return kv_heads if kv_heads % 2 == 0 else heads
