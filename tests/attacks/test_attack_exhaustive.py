"""Every assignment of lists to members: none opens an individual, or two sums, or a sum that is too small.

The rules are those of sealing/member: a member signs one list that holds itself and is large enough, and reveals when
q members of that list signed it. Colluders sign every list and give every share that they hold. What a coordinator
can compute from the shares is decided by an argument on graphs: it learns the sum over a set of honest members
exactly when it has all their self masks and every pairwise mask that leads out of the set.
`test_real_members_obey_the_model` plays every assignment for n = 3 against the real node code.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from confide.codec.tensors import model_digest
from confide.errors import ProtocolFailure
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.parameters import Parameters
from confide.sealing.primitives import wire

from tests.attacks.liar import stop_before
from tests.sealing_harness import Federation, specify

List = frozenset[int]


def possible(members: int) -> Iterator[Parameters]:
    for colluding in range(members - 1):
        largest = Parameters.of(members=members, colluding=colluding, min_cohort=2)
        for missing in range(largest.missing + 1):
            yield Parameters.of(members=members, colluding=colluding, min_cohort=2, max_missing=missing)


def signable(parameters: Parameters, member: int) -> list[List | None]:
    """What one honest member can be brought to sign: nothing, or any list that it accepts."""
    others = [other for other in range(parameters.members) if other != member]
    lists: list[List | None] = [None]
    for size in range(parameters.smallest_list - 1, parameters.members):
        lists += [frozenset((member, *chosen)) for chosen in itertools.combinations(others, size)]
    return lists


def opened(parameters: Parameters, assignment: tuple[List | None, ...]) -> list[List]:
    """The smallest sets of honest members whose sum the coordinator learns. Members from n - c on collude."""
    n, c = parameters.members, parameters.colluding
    honest, colluders = range(n - c), frozenset(range(n - c, n))
    signers: dict[List, int] = {}
    for chosen in assignment:
        if chosen is not None:
            signers[chosen] = signers.get(chosen, 0) + 1
    self_shares, secret_shares = [c] * n, [c] * n
    for member, chosen in enumerate(assignment):
        if chosen is None or signers[chosen] + len(chosen & colluders) < parameters.quorum:
            continue
        for other in range(n):
            if other in chosen:
                self_shares[other] += 1
            elif other != member:
                secret_shares[other] += 1
    unmasked = {member for member in honest if self_shares[member] >= parameters.threshold}
    exposed = {member for member in honest if secret_shares[member] >= parameters.threshold}
    sets, seen = [], set()
    for start in honest:
        if start in seen:
            continue
        # An exposed member's pairwise masks are all known; the others hide in one another.
        group = {start} if start in exposed else {member for member in honest if member not in exposed}
        seen |= group
        if group <= unmasked:
            sets.append(frozenset(group))
    return sets


@pytest.mark.parametrize("members", [2, 3, 4, 5])
def test_no_assignment_opens_too_little_or_twice(members: int) -> None:
    checked = opened_sums = 0
    for parameters in possible(members):
        honest = members - parameters.colluding
        for assignment in itertools.product(*(signable(parameters, member) for member in range(honest))):
            checked += 1
            sets = opened(parameters, assignment)
            assert len(sets) <= 1, (parameters, assignment)
            for group in sets:
                opened_sums += 1
                assert len(group) >= 2, (parameters, assignment)
                assert len(group) + parameters.colluding >= parameters.smallest_list, (parameters, assignment)
    assert opened_sums > 0 and checked > opened_sums


def test_the_search_finds_what_a_weaker_quorum_would_allow() -> None:
    weak = Parameters.of(members=4, colluding=1, min_cohort=2)
    # One signature less, as if the rule were q = floor(n / 2) + 1 with no thought for colluders.
    object.__setattr__(weak, "quorum", 2)
    object.__setattr__(weak, "threshold", 2)
    object.__setattr__(weak, "missing", 2)
    found = [
        sets
        for assignment in itertools.product(*(signable(weak, member) for member in range(3)))
        if len(sets := opened(weak, assignment)) > 1 or any(len(group) < 2 for group in sets)
    ]
    assert found


Slot = tuple[frozenset[tuple[int, List]], List]
"""Each honest member that revealed, with its list; and the honest members in the sum that opened."""


def openings(parameters: Parameters, honest: tuple[int, ...]) -> set[Slot]:
    """Every slot that opens a sum, with honest members by these numbers; the colluders are the same in every slot."""
    number = dict(enumerate(honest))
    found: set[Slot] = set()
    for assignment in itertools.product(*(signable(parameters, member) for member in range(len(honest)))):
        for group in opened(parameters, assignment):
            lists = {member: chosen for member, chosen in enumerate(assignment) if chosen is not None}
            quorum = Counter(lists.values())
            colluders = frozenset(range(len(honest), parameters.members))
            revealed = frozenset(
                (number[member], frozenset(number.get(other, -other) for other in chosen))
                for member, chosen in lists.items()
                if quorum[chosen] + len(chosen & colluders) >= parameters.quorum
            )
            found.add((revealed, frozenset(number[member] for member in group)))
    return found


def told_apart(first: set[Slot], second: set[Slot], *, memory: bool) -> list[tuple[List, List]]:
    """Pairs of sums on one model that differ by exactly one honest member, by what the members reveal for."""
    return [
        (one, two)
        for revealed, one in first
        for again, two in second
        if len(one ^ two) == 1
        and not (memory and any(dict(again).get(member, kept) != kept for member, kept in revealed))
    ]


@pytest.mark.parametrize("members", [3, 4, 5])
def test_no_pair_of_slots_on_one_model_tells_a_member_apart(members: int) -> None:
    """In one epoch, and in two of which the second lacks one honest member; blocks or not, by memory alone."""
    without_memory = 0
    for colluding in range(members - 1):
        parameters = Parameters.of(members=members, colluding=colluding, min_cohort=2)
        honest = tuple(range(members - colluding))
        first = openings(parameters, honest)
        seconds = [first]
        if colluding <= members - 3:
            fewer = Parameters.of(members=members - 1, colluding=colluding, min_cohort=2)
            seconds += [openings(fewer, tuple(other for other in honest if other != gone)) for gone in honest]
        for second in seconds:
            without_memory += len(told_apart(first, second, memory=False))
            assert told_apart(first, second, memory=True) == []
    assert without_memory > 0


def test_real_members_obey_the_model(tmp_path: Path) -> None:
    parameters = Parameters.of(members=3, colluding=0, min_cohort=2)
    federation = Federation(tmp_path, 3, specify("colluding = 0", "min_cohort = 2", slots=100), size=8)
    members = sorted(federation.members)
    everything = list(itertools.product(*(signable(parameters, member) for member in range(3))))
    assert len(everything) == 4**3
    for assignment in everything:
        exchange = stop_before(federation, fleet_pb2.CONFIRM)
        request = sealing_pb2.ConfirmRequest.FromString(next(iter(exchange.bodies.values())))
        digests = {item.node: item.upload_digest for item in request.survivors}
        lists = {
            chosen: [sealing_pb2.Survivor(node=members[i], upload_digest=digests[members[i]]) for i in sorted(chosen)]
            for chosen in assignment
            if chosen is not None
        }
        signed: dict[List, list[sealing_pb2.Confirmation]] = {chosen: [] for chosen in lists}
        for member, chosen in zip(members, assignment, strict=True):
            if chosen is None:
                continue
            ask = sealing_pb2.ConfirmRequest(
                version=1, slot=request.slot, context=request.context, survivors=lists[chosen]
            )
            reply, _ = federation.ask(fleet_pb2.CONFIRM, member, wire.encode(ask))
            signed[chosen].append(sealing_pb2.Confirmation.FromString(reply))
        self_shares, secret_shares = dict.fromkeys(members, 0), dict.fromkeys(members, 0)
        for member in members:
            for chosen, survivors in lists.items():
                names = [item.node for item in survivors]
                reveal = sealing_pb2.RevealRequest(
                    version=1,
                    slot=request.slot,
                    context=request.context,
                    survivors=survivors,
                    confirmations=signed[chosen],
                    self_masks=names,
                    mask_secrets=[name for name in members if name not in names],
                )
                try:
                    reply, _ = federation.ask(fleet_pb2.REVEAL, member, wire.encode(reveal))
                except ProtocolFailure:
                    continue
                for share in sealing_pb2.Reveal.FromString(reply).shares:
                    counts = self_shares if share.kind == sealing_pb2.SELF_MASK else secret_shares
                    counts[share.dealer] += 1
        unmasked = frozenset(i for i, name in enumerate(members) if self_shares[name] >= parameters.threshold)
        exposed = {i for i, name in enumerate(members) if secret_shares[name] >= parameters.threshold}
        predicted = opened(parameters, assignment)
        assert predicted == ([unmasked - exposed] if unmasked - exposed else [])
        assert not unmasked & exposed
        federation.collector.close_exchange()
        before = federation.model
        federation.end(federation.drive() or federation.collector.outcome)  # type: ignore[arg-type]
        federation.parent = model_digest(before.tobytes())
        federation.model = (before + np.float32(1e-3)).astype("<f4")
