"""What sealing costs beside the vectors: keys, shares, signatures, checks and journals of one slot.

The real members and the real collector run an epoch, its first slot and some more in one process over a vector of
1,024 parameters, so that what is measured does not depend on the model's size. CPU time of the members is averaged.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from confide.codec.digest import DigestedFile
from confide.codec.tensors import TensorSchema, model_digest
from confide.identity.keys import SigningKey, new_p256, spki
from confide.identity.roster import Member, Role, Roster
from confide.runs.contribution import Contribution
from confide.runs.specification import EXAMPLE, parse_toml
from confide.sealing.collector.collector import SealedCollector
from confide.sealing.member.context import NodeRules
from confide.sealing.member.member import SealedMember
from confide.sealing.roles import Exchange, Opened, SlotPlan

from confide_simulations.benchmarks.meta import cpu_seconds

SIZE = 1024
"""Parameters of its vectors."""
_SLOTS_PER_EPOCH = 16
RUN = "ab" * 16
NOW = 1_000_000


class ProtocolCost:
    """CPU seconds of one node and of the coordinator: a slot's, over an epoch of 16; an epoch's with its first slot."""

    def __init__(self, nodes: int, folder: Path, *, slots: int = 3) -> None:
        self._names = tuple(f"hospital-{number:02d}" for number in range(nodes))
        self._keys = {name: SigningKey.generate() for name in self._names}
        self._model = np.zeros(SIZE, dtype="<f4")
        self._build(folder)
        self._node_s = self._coordinator_s = 0.0
        self._run_slot(1, b"")  # compiles, and pays the epoch
        self._node_s = self._coordinator_s = 0.0
        self._timed(self._begin_epoch)
        # The first slot carries the dealings of the epoch, the other 15 do not.
        parent = self._run_slot(2, self._previous)
        self.epoch_node_s, self.epoch_coordinator_s = self._node_s / nodes, self._coordinator_s
        self._node_s = self._coordinator_s = 0.0
        for slot in range(3, 3 + slots):
            parent = self._run_slot(slot, parent)
        later = (_SLOTS_PER_EPOCH - 1) / _SLOTS_PER_EPOCH / slots
        self.node_s = self._node_s / nodes * later + self.epoch_node_s / _SLOTS_PER_EPOCH
        self.coordinator_s = self._coordinator_s * later + self.epoch_coordinator_s / _SLOTS_PER_EPOCH

    def _build(self, folder: Path) -> None:
        specification = parse_toml(
            EXAMPLE.replace("rounds = 3", f"rounds = {_SLOTS_PER_EPOCH}")
            + f"\n[sealing]\nslots_per_epoch = {_SLOTS_PER_EPOCH}\n"
        )
        common: dict[str, Any] = {"specification": specification, "roster": sealing_roster(self._keys), "run_id": RUN}
        self._collector = SealedCollector(folder=folder / "coordinator", schema=TensorSchema.unnamed(SIZE), **common)
        self._members = {
            name: SealedMember(
                node=name, identity_key=self._keys[name], folder=folder / name, schema=TensorSchema.unnamed(SIZE),
                initial_model_sha256=model_digest(self._model.tobytes()), rules=NodeRules(waive_colluding=True),
                clock=lambda: NOW + 10.0, **common,
            )
            for name in self._names
        }  # fmt: skip

    def _timed(self, work: Callable[[], None]) -> None:
        """Everything that is not a member's work is the coordinator's."""
        before = self._node_s
        total = cpu_seconds(work)
        self._coordinator_s += total - (self._node_s - before)

    def _begin_epoch(self) -> None:
        self._collector.begin_epoch(self._names)
        self._drive()

    def _run_slot(self, slot: int, parent: bytes) -> bytes:
        if self._collector.epoch_needed(self._names):
            self._timed(self._begin_epoch)
        current = model_digest(self._model.tobytes())
        plan = SlotPlan(slot=slot, round=slot, attempt=1, model_sha256=current, parent_model_sha256=parent)
        self._timed(lambda: self._slot(plan))
        self._previous = current
        return current

    def _slot(self, plan: SlotPlan) -> None:
        self._collector.open_slot(plan)
        self._drive()
        outcome = self._collector.outcome
        if not isinstance(outcome, Opened):
            raise AssertionError(f"the benchmark's slot did not open: {outcome}")
        self._model = (self._model + outcome.update_sum / outcome.weight_sum).astype("<f4")
        ended = self._collector.end_message(model_digest(self._model.tobytes()))
        for member in self._members.values():
            self._node_s += cpu_seconds(partial(member.slot_ended, ended))

    def _drive(self) -> None:
        while (exchange := self._collector.exchange()) is not None:
            for name, body in exchange.bodies.items():
                self._ask(exchange, name, body)
            self._collector.close_exchange()

    def _ask(self, exchange: Exchange, name: str, body: bytes) -> None:
        answers = []

        def handle() -> None:
            member, model = self._members[name], self._model.tobytes()
            answers.append(member.handle(exchange.step, body, lambda _: _contribution(name), model))

        self._node_s += cpu_seconds(handle)
        payload = answers[0].payload
        self._collector.receive(name, answers[0].body, None if payload is None else DigestedFile.read(payload))


def _contribution(name: str) -> Contribution:
    update = np.random.default_rng(int(name[-2:])).standard_normal(SIZE, dtype=np.float32)
    return Contribution(update / np.float32(np.linalg.norm(update)))


def sealing_roster(
    keys: Mapping[str, SigningKey],
    groups: Mapping[str, str] | None = None,
    *,
    blocks: Mapping[str, str] | None = None,
    version: int = 1,
) -> Roster:
    """A roster in which everyone of `keys` is a node, in the group and block that are named for it."""
    members = tuple(
        Member(
            name=name, role=Role.NODE, identity_key=key.public.hex(), fleet_key=spki(new_p256()).hex(),
            tls_key=hashlib.sha256(name.encode()).hexdigest(), admitted_at=NOW,
            group=(groups or {}).get(name, ""), block=(blocks or {}).get(name, ""),
        )
        for name, key in sorted(keys.items())
    )  # fmt: skip
    previous = "" if version == 1 else "0" * 64
    return Roster(
        version=version, previous=previous, consortium="example", demo=True, issued_at=NOW, expires_at=2 * NOW,
        ca_certificate="", members=members,
    )  # fmt: skip
