"""Make tests/vectors/sealing.json: whole slots with every message in hex, and messages that must be refused by name.

    python -m tests.vectors.make_sealing_vectors

The real node and coordinator code runs with its randomness replaced by SHA-256 of a counter. Another implementation
reads the secrets from the file instead, makes the same messages, and must refuse the failing ones: each was sent to
its node after `after` messages of the case had been answered. tests/sealing_reference.py is such an implementation.
"""

import hashlib
import json
import secrets
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from confide.errors import ConfideError
from confide.identity.keys import SigningKey
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.contribution import Contribution
from confide.runs.metrics import Metric
from confide.sealing.primitives import scalars
from confide.sealing.roles import Opened
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from tests.attacks.liar import resign, rewrite
from tests.sealing_harness import RUN, Federation, specify

TARGET = Path(__file__).with_name("sealing.json")
SIZE = 5
A, B, C = "hospital-00", "hospital-01", "hospital-02"


@contextmanager
def counted_randomness(label: str) -> Iterator[Callable[[int], bytes]]:
    """Replace the operating system's generator by SHA-256 over a label and a counter."""
    honest = secrets.token_bytes, secrets.randbelow, SigningKey.generate
    counter = 0

    def token_bytes(count: int | None = None) -> bytes:
        nonlocal counter
        counter += 1
        data = b"".join(
            hashlib.sha256(f"{label}/{counter}/{i}".encode()).digest() for i in range((count or 32) // 32 + 1)
        )
        return data[: count or 32]

    def randbelow(limit: int) -> int:
        return int.from_bytes(token_bytes(64), "big") % limit

    def generate() -> SigningKey:
        return SigningKey(Ed25519PrivateKey.from_private_bytes(token_bytes(32)))

    secrets.token_bytes, secrets.randbelow, SigningKey.generate = token_bytes, randbelow, generate  # type: ignore[assignment, method-assign]
    try:
        yield token_bytes
    finally:
        secrets.token_bytes, secrets.randbelow, SigningKey.generate = honest  # type: ignore[method-assign]


class Recorded(Federation):
    """One impulse per node as its update: few roundings, the same on every machine."""

    def update(self, name: str, slot: int) -> NDArray[np.float32]:
        vector = np.zeros(self.size, np.float32)
        vector[int(name[-2:])] = 0.5
        return vector

    def contribution(self, name: str, plan: fleet_pb2.SlotOpen) -> Contribution:
        return Contribution(
            self.update(name, plan.slot), weight=1.0, metrics={Metric.EVAL_ACCURACY: 0.25 * (1 + int(name[-2:]))}
        )


Change = Callable[[Any], object]


def _drop(field: str, index: int) -> Change:
    def change(message: Any) -> None:
        del getattr(message, field)[index]

    return change


def _set(**values: object) -> Change:
    def change(message: Any) -> None:
        for name, value in values.items():
            setattr(message, name, value)

    return change


def _swap_key(message: Any) -> None:
    bundle = sealing_pb2.Bundle.FromString(message.bundles[1].bundle)
    bundle.mask_keys[0], bundle.mask_keys[1] = bundle.mask_keys[1], bundle.mask_keys[0]
    message.bundles[1].bundle = bundle.SerializeToString(deterministic=True)


def _both(message: Any) -> None:
    message.mask_secrets.insert(0, B)


def _own(message: Any) -> None:
    message.mask_secrets.insert(0, A)


def _double(message: Any) -> None:
    del message.confirmations[1:]
    message.confirmations.extend([message.confirmations[0]])


def _garble(message: Any) -> None:
    text = message.dealings[0].ciphertext
    message.dealings[0].ciphertext = text[:-1] + bytes([text[-1] ^ 1])


def _stranger(message: Any) -> None:
    message.survivors.add(node="hospital-99", upload_digest=bytes(32))


def lies(federation: Federation) -> dict[fleet_pb2.Step, list[tuple[type, Change]]]:
    """Changes to each question to hospital-00; the failures are recorded, not assumed."""

    def low_order(message: Any) -> None:
        resign(message.bundles[1], federation.keys[B], lambda bundle: setattr(bundle, "share_key", bytes(32)))

    def second_bundle(message: Any) -> None:
        message.bundles.add().CopyFrom(message.bundles[2])
        resign(message.bundles[3], federation.keys[C], lambda bundle: setattr(bundle, "incarnation", bytes(16)))

    advertise, share, train = sealing_pb2.AdvertiseRequest, sealing_pb2.ShareRequest, sealing_pb2.SealedOpen
    confirm, reveal = sealing_pb2.ConfirmRequest, sealing_pb2.RevealRequest
    guarded = federation.specification.refuses_differences
    return {
        fleet_pb2.ADVERTISE: [
            (advertise, _set(specification_sha256=bytes(32))),
            (advertise, _set(roster_version=2)),
            (advertise, _set(run_id="cd" * 16)),
            (advertise, _set(version=2)),
        ],
        fleet_pb2.SHARE: [
            (share, _swap_key),
            (share, low_order),
            (share, second_bundle),
            (share, _drop("bundles", 0)),
            (share, _set(epoch=7)),
            *([(share, _drop("bundles", 2))] if guarded else []),
        ],
        fleet_pb2.TRAIN: [
            (train, _drop("cohort", 2)),
            (train, _drop("dealings", 1)),
            (train, _garble),
            (train, _set(slot=9)),
        ],
        fleet_pb2.CONFIRM: [
            (confirm, _set(context=bytes(32))),
            (confirm, _drop("survivors", 0)),
            (confirm, lambda message: [_drop("survivors", 1)(message) for _ in message.survivors[1:]]),
            (confirm, _stranger),
            *([(confirm, _drop("survivors", 2))] if guarded else []),
        ],
        fleet_pb2.REVEAL: [
            (reveal, _set(context=bytes(32))),
            (reveal, _drop("survivors", 1)),
            (reveal, _both),
            (reveal, _own),
            (reveal, _double),
            (reveal, lambda message: [_drop("confirmations", 1)(message) for _ in message.confirmations[1:]]),
        ],
    }


def _refusals(federation: Federation, step: fleet_pb2.Step, body: bytes, after: int) -> list[dict[str, Any]]:
    found = []
    for kind, change in lies(federation)[step]:
        lie = rewrite(kind, body, change)
        try:
            federation.ask(step, A, lie)
        except ConfideError as error:
            named = {"after": after, "step": fleet_pb2.Step.Name(step), "node": A, "body": lie.hex()}
            found.append(named | {"failure": error.code})
        else:
            raise AssertionError(f"a lie at {fleet_pb2.Step.Name(step)} was answered")
    return found


def case(label: str, silent: str | None, differences: str = "accepted") -> dict[str, Any]:
    """One slot in which `silent` advertises and deals, and does not upload."""
    with counted_randomness(label), tempfile.TemporaryDirectory() as folder:
        settings = "colluding = 0\nbits = 8", "min_cohort = 2"
        specification = specify(*settings, slots=2, differences=differences)
        federation = Recorded(Path(folder), 3, specification, size=SIZE)
        collector = federation.collector
        messages: list[dict[str, Any]] = []
        failing: list[dict[str, Any]] = []
        own: dict[str, Any] = {}
        collector.begin_epoch(tuple(federation.members))
        for phase in ("epoch", "slot"):
            if phase == "slot":
                collector.open_slot(federation.plan())
            while (exchange := collector.exchange()) is not None:
                failing += _refusals(federation, exchange.step, exchange.bodies[A], len(messages))
                for node, body in exchange.bodies.items():
                    if node == silent and exchange.step == fleet_pb2.TRAIN:
                        collector.lost(node, "TransportError", "silent")
                        continue
                    reply, payload = federation.ask(exchange.step, node, body)
                    step = fleet_pb2.Step.Name(exchange.step)
                    messages.append({"step": step, "node": node, "request": body.hex(), "reply": reply.hex()})
                    if exchange.step == fleet_pb2.ADVERTISE:
                        own[node] = _secrets(federation, node)
                    collector.receive(node, reply, payload)
                collector.close_exchange()
        return _document(label, federation, messages, failing, own)


def _secrets(federation: Federation, node: str) -> dict[str, Any]:
    epoch = federation.members[node].epoch
    assert epoch is not None and epoch.own.share_secret is not None
    return {
        "share_secret": epoch.own.share_secret.hex(),
        "mask_secrets": [secret.hex() for secret in epoch.own.mask_secrets if secret is not None],
        "seeds": [seed.hex() for seed in epoch.own.seeds if seed is not None],
    }


def _document(
    label: str,
    federation: Recorded,
    messages: list[dict[str, Any]],
    failing: list[dict[str, Any]],
    own: dict[str, Any],
) -> dict[str, Any]:
    outcome, slot, epoch = (
        federation.collector.outcome,
        federation.collector._state.slot,
        federation.collector._state.epoch,
    )
    assert isinstance(outcome, Opened) and slot is not None and slot.layout is not None and epoch is not None
    assert epoch.parameters is not None and epoch.key is not None
    opened = fleet_pb2.SlotOpen(slot=1)
    return {
        "name": label,
        "parameters": {
            "n": epoch.parameters.members,
            "c": epoch.parameters.colluding,
            "q": epoch.parameters.quorum,
            "t": epoch.parameters.threshold,
            "d": epoch.parameters.missing,
            "smallest_list": epoch.parameters.smallest_list,
        },
        "layout": {
            "parameters": SIZE,
            "scalars": slot.layout.scalars,
            "bits": slot.layout.bits,
            "members": slot.layout.members,
            "clip": slot.layout.clip,
            "rotation_seed": slot.layout.rotation_seed.hex(),
            "noise_bits": slot.layout.noise_bits,
            "lane_bits": slot.layout.lane_bits,
            "coordinates": slot.layout.coordinates,
        },
        "identity": {name: key.public.hex() for name, key in federation.keys.items()},
        "roster": federation.roster.model_dump(mode="json"),
        "specification": federation.specification.model_dump(mode="json"),
        "model": federation.model.tobytes().hex(),
        "secrets": own,
        "updates": {name: federation.update(name, 1).tolist() for name in federation.keys},
        "scalars": {name: scalars.encode(federation.contribution(name, opened)) for name in federation.keys},
        "bundles": epoch.key.bundles.hex(),
        "context": slot.context.hex(),
        "uploads": {name: data.hex() for name, data in sorted(federation.payloads.items())},
        "messages": messages,
        "opened": {
            "contributors": list(outcome.contributors),
            "update_sum": [round(float(value), 6) for value in outcome.update_sum],
            "weight_sum": outcome.weight_sum,
            "metrics": {name.value: [total, count] for name, (total, count) in outcome.metrics.items()},
        },
        "failing": failing,
    }


def build() -> dict[str, Any]:
    """The whole file."""
    cases = [
        case("everybody answers", None),
        case("one member does not upload", C),
        case("differences are refused", None, differences="refused"),
    ]
    return {"version": 1, "run_id": RUN, "document": "docs/sealing.md", "cases": cases}


def main() -> None:
    """Write the file."""
    TARGET.write_text(json.dumps(build(), indent=1) + "\n")


if __name__ == "__main__":
    main()
