"""What each of three ranks runs for `test_shares.py`: every mixer on a stream that ranks share, and on the whole of it.

Two of them share out heads as well as tokens; among three, shares are uneven and heads do not divide.

Prints what is not equal, and ends with 1 if anything is not.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
import torch.distributed as dist
from conftest import CONVOLVED, MIXERS, make_model
from torch import Tensor, nn

from kernels.exchange import Ranks
from lm.model.documents import Documents
from lm.model.shares import SequenceGroup, offers

STREAMS = ([7, 1, 13, 4, 20], [3, 41, 1], [9, 9, 9, 9])
MODELS = {
    "hybrid_four": {},
    "hybrid_odd": {},
    "hybrid_rnn": {},
    "hybrid_conv": {},
    "s2": {"num_key_value_heads": 1, "mixers": {"s2": MIXERS["s2"]}},
    "hybrid_two": {"num_key_value_heads": 4, "z_loss": 1e-2},
}
FAILURES: list[str] = []


@dataclass(frozen=True)
class Case:
    """One layer in one mode on one stream, shared out over `group`."""

    name: str
    layer: nn.Module
    lengths: list[int]
    group: SequenceGroup

    @property
    def documents(self) -> Documents:
        return Documents.from_lengths(self.lengths)

    @property
    def local(self) -> Documents:
        return self.group.share(self.documents)

    @property
    def part(self) -> slice:
        return self.group.part(sum(self.lengths))

    def run(self, x: Tensor, probe: Tensor, documents: Documents) -> tuple[Tensor, Tensor]:
        """Outputs and the gradients that the probe gives to the inputs, and in `.grad` to the weights."""
        x = x.clone().requires_grad_(True)
        self.layer.zero_grad()
        out = self.layer.mix(x, documents)
        (out * probe).sum().backward()
        return out.detach(), x.grad

    def shared(self, x: Tensor, probe: Tensor) -> tuple[Tensor, Tensor]:
        """The same for this rank's tokens."""
        return self.run(x[self.part], probe[self.part], self.local)


def noise(tokens: int, seed: int) -> Tensor:
    return torch.randn(tokens, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expect(condition: bool, what: str) -> None:
    if not condition:
        FAILURES.append(f"rank {dist.get_rank()}: {what}")


def near(found: Tensor, wanted: Tensor, what: str) -> None:
    gap = (found - wanted).abs().max().item() if found.numel() else 0.0
    expect(found.shape == wanted.shape and gap <= 1e-10, f"{what}: off by {gap:.2g}")


def weight_gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def equals_one_rank(case: Case) -> None:
    x, probe = noise(sum(case.lengths), 0), noise(sum(case.lengths), 1)
    wanted = case.run(x, probe, case.documents)
    weights = weight_gradients(case.layer)
    for found, whole, what in zip(case.shared(x, probe), wanted, ("outputs", "gradients"), strict=True):
        near(found, whole[case.part], f"{case.name}: {what}")
    for name, parameter in case.layer.named_parameters():
        if name in weights:
            dist.all_reduce(parameter.grad, group=case.group.ranks.group)
            near(parameter.grad, weights[name], f"{case.name}: gradient of {name}")


def leaks_nothing(case: Case) -> None:
    """A changed document leaves the others exactly as they were; so does what comes later in its own."""
    documents, tokens = case.documents, sum(case.lengths)
    x, probe = noise(tokens, 0), noise(tokens, 1)
    before = case.shared(x, probe)
    for changed in range(len(case.lengths)):
        other = documents.document != changed
        after = case.shared(torch.where(other[:, None], x, noise(tokens, 2)), probe)
        for one, two, what in zip(before, after, ("outputs", "gradients"), strict=True):
            kept = other[case.part]
            expect(torch.equal(one[kept], two[kept]), f"{case.name}: document {changed} changes others' {what}")
    for last in (0, tokens // 3, tokens // 2, tokens - 2):
        later = torch.arange(tokens)[:, None] > last
        grad = case.shared(x, probe.masked_fill(later, 0.0))[1]
        expect(not grad[later[case.part, 0]].any(), f"{case.name}: outputs up to {last} depend on later inputs")


def model_equals_one_rank(name: str, changes: dict[str, object], group: SequenceGroup) -> None:
    """Logits, the loss summed over ranks, and the gradients of every weight."""
    model = make_model(name, **changes).train()
    lengths = STREAMS[0]
    stream = Documents.from_lengths(lengths)
    tokens = torch.randint(0, 23, (sum(lengths),), generator=torch.Generator().manual_seed(0))
    targets = tokens.roll(-1).masked_fill(torch.arange(len(tokens)) % 5 == 0, -100)
    targets[len(tokens) // 2 :] = -100  # a rank may have nothing to learn
    wanted = model(tokens, stream, targets)
    wanted.loss.backward()
    gradients, logits = weight_gradients(model), model(tokens, stream)
    model.zero_grad()
    local = group.share(stream)
    part = group.part(len(tokens))
    near(model(tokens[part], local), logits[part], f"{name}: logits")
    found = model(tokens[part], local, targets[part])
    found.loss.backward()
    loss = found.loss.detach().clone()
    dist.all_reduce(loss, group=group.ranks.group)
    near(loss, wanted.loss.detach(), f"{name}: loss")
    for weight, parameter in model.named_parameters():
        dist.all_reduce(parameter.grad, group=group.ranks.group)
        near(parameter.grad, gradients[weight], f"{name}: gradient of {weight}")


def cases(ranks: Ranks) -> Iterator[Case]:
    for scheme, name, training in product(("heads", "neighbours"), (*MIXERS, *CONVOLVED), (True, False)):
        layer = make_model(name).model.blocks[0].train(training)
        divides = layer.mixer.head_values(ranks.size) is not None
        if (scheme == "heads" and not divides) or (not training and layer.mixer.options.kind != "shifted_short"):
            continue
        mode = "training" if training else "evaluation"
        for number, lengths in enumerate(STREAMS):
            group = SequenceGroup(ranks, (64,), scheme=scheme)
            yield Case(f"{name} by {scheme}, {mode}, stream {number}", layer, lengths, group)


def receives_what_is_planned(case: Case) -> None:
    """The bytes that a forward brings to the rank which receives most are those of `offers`."""
    received, rank = 0, case.group.ranks.rank
    exchange = dist.all_to_all_single

    def counting(out: Tensor, rows: Tensor, receive: list[int], *rest: object, **more: object) -> None:
        nonlocal received
        others = sum(receive) - receive[rank]
        received += others * out[:1].numel() * out.element_size() if others else 0
        exchange(out, rows, receive, *rest, **more)

    dist.all_to_all_single = counting
    with torch.no_grad():
        case.layer.mixer(noise(sum(case.lengths), 0)[case.part], case.local)
    dist.all_to_all_single = exchange
    most = torch.tensor(received)
    dist.all_reduce(most, dist.ReduceOp.MAX, group=case.group.ranks.group)
    planned = offers(case.layer.mixer, case.lengths, case.group.ranks.size, torch.float64)
    wanted = planned[case.group.scheme].received
    expect(int(most) == wanted, f"{case.name}: {most} bytes, planned {wanted}")


def check(ranks: Ranks) -> int:
    """The number of cases."""
    count = 0
    for case in cases(ranks):
        equals_one_rank(case)
        if case.lengths == STREAMS[0] and case.layer.training:
            leaks_nothing(case)
            receives_what_is_planned(replace(case, lengths=[29, 16]))
        count += 1
    schemes = ("heads", "neighbours", None) if ranks.size == 2 else ("neighbours",)
    for scheme, (name, changes) in product(schemes, MODELS.items()):
        model_equals_one_rank(name, changes, SequenceGroup(ranks, (64,), scheme=scheme))
    return count


def main() -> int:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    count = 0
    for members in ([0, 1], [0, 1, 2]):
        group = dist.new_group(members)
        if rank in members:
            count += check(Ranks(group, rank, len(members)))
    print(*FAILURES[:20], f"rank {rank}: {count} cases, {len(FAILURES)} failures", sep="\n", flush=True)
    dist.destroy_process_group()
    return int(bool(FAILURES))


if __name__ == "__main__":
    sys.exit(main())
