"""Tools for playing the liar: stop a federation before a step, rewrite a message, expect a refusal by name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
from confide.errors import FailureName, ProtocolFailure
from confide.identity.keys import SigningKey
from confide.proto import fleet_pb2, sealing_pb2
from confide.sealing.primitives import bundles, wire
from confide.sealing.roles import Exchange
from google.protobuf.message import Message

from tests.sealing_harness import Federation

M = TypeVar("M", bound=Message)
A, B, C, D, E = (f"hospital-{number:02d}" for number in range(5))


@contextmanager
def refused(name: FailureName) -> Iterator["pytest.ExceptionInfo[ProtocolFailure]"]:
    """The block must end in this failure and no other."""
    with pytest.raises(ProtocolFailure) as caught:
        yield caught
    assert caught.value.name is name, caught.value


def rewrite(kind: type[M], body: bytes, change: Callable[[M], object]) -> bytes:
    """The message with one change, canonical again."""
    message = wire.decode(kind, body)
    change(message)
    return wire.encode(message)


def stop_before(federation: Federation, step: fleet_pb2.Step, **plan: object) -> Exchange:
    """Run epoch and slot up to a step; returns what the honest coordinator would ask now."""
    collector = federation.collector
    if step in (fleet_pb2.ADVERTISE, fleet_pb2.SHARE):
        collector.begin_epoch(tuple(sorted(federation.members)))
    else:
        federation.epoch()
        collector.open_slot(federation.plan(**plan))
    while True:
        exchange = collector.exchange()
        assert exchange is not None
        if exchange.step == step:
            return exchange
        for node, body in exchange.bodies.items():
            collector.receive(node, *federation.ask(exchange.step, node, body))
        collector.close_exchange()


def finish(federation: Federation) -> None:
    """Let the honest coordinator finish the open slot."""
    outcome = federation.drive()
    assert outcome is not None
    federation.end(outcome)


def resign(signed: sealing_pb2.SignedBundle, key: SigningKey, change: Callable[[sealing_pb2.Bundle], object]) -> None:
    """Alter a bundle and sign it again, as only its owner (or a thief of the key) can."""
    bundle = wire.decode(sealing_pb2.Bundle, signed.bundle)
    change(bundle)
    signed.bundle = wire.encode(bundle)
    signed.signature = key.sign(bundles.DOMAIN, signed.bundle)
