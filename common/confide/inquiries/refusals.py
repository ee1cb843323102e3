"""Why a node says nothing to an inquiry: a closed list of names, the same at node and asker."""

from enum import StrEnum

from confide.errors import ConfideError


class Refusal(StrEnum):
    """docs/federated-retrieval.md says when each is given."""

    UNREADABLE = "UNREADABLE"
    NOT_SIGNED = "NOT_SIGNED"
    NOT_FOR_THIS_NODE = "NOT_FOR_THIS_NODE"
    EXPIRED = "EXPIRED"
    REPLAYED = "REPLAYED"
    TOO_MANY = "TOO_MANY"
    SWITCHED_OFF = "SWITCHED_OFF"
    ASKER_NOT_ALLOWED = "ASKER_NOT_ALLOWED"
    PURPOSE_NOT_ALLOWED = "PURPOSE_NOT_ALLOWED"
    TOO_MUCH_ASKED = "TOO_MUCH_ASKED"
    QUOTE_NOT_VERIFIED = "QUOTE_NOT_VERIFIED"
    FAILED = "FAILED"


UNREAD = frozenset({Refusal.UNREADABLE, Refusal.NOT_SIGNED})
"""Of these nobody gets a signed answer: it is not known who asked."""


class InquiryRefused(ConfideError):
    """A node says nothing, and why: `name` for programs, the text for people. It goes to the asker."""

    def __init__(self, name: Refusal, detail: str) -> None:
        super().__init__(detail)
        self.name = name

    @property
    def code(self) -> str:
        return self.name.value
