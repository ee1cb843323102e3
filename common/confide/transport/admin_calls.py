"""What every part of the administration service's client stands on: one connection, one way of asking."""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import Message

from confide.proto.admin_pb2_grpc import AdminStub
from confide.text import cleaned_message
from confide.transport.control import CALL_TIMEOUT_S, ControlClient
from confide.transport.failures import ACTING_ORGANIZATION_KEY, ACTING_ROLE_KEY, ACTING_USER_KEY, own_metadata

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, kw_only=True)
class ActingUser:
    """The person for whom a console calls."""

    name: str
    role: str
    """administrator, operator, auditor, annotator, or node for a person of an organization."""
    organization: str = ""
    """With role node: which."""


class AdminCalls(ControlClient):
    """The parts of AdminClient are its subclasses."""

    acting: ActingUser | None = None
    """Set by a console, for each person anew (`acting_for`)."""

    @property
    def _admin(self) -> AdminStub:
        stub: AdminStub | None = self.__dict__.get("_admin_stub")
        if stub is None:
            stub = AdminStub(self._channel)  # type: ignore[no-untyped-call]  # generated
            self.__dict__["_admin_stub"] = stub
        return stub

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        if self.acting is None:
            return own_metadata()
        who = (
            (ACTING_USER_KEY, self.acting.name),
            (ACTING_ROLE_KEY, self.acting.role),
            (ACTING_ORGANIZATION_KEY, self.acting.organization),
        )
        return (*own_metadata(), *who)

    def _ask(
        self,
        method: Callable[..., Any],
        request: Message | Iterator[Message],
        kind: type[M],
        *,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> M:
        self._greet()
        with self._failures():
            reply: M = method(request, metadata=self._metadata(), timeout=timeout_s)
        return cleaned_message(reply)


def new_key() -> str:
    """An idempotency key: 32 characters."""
    return secrets.token_hex(16)
