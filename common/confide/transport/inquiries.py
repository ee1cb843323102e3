"""The client side of the inquiries service: what askers and nodes ask of the coordinator, which only carries.

with InquiryClient.of_member(member) as client:
    for node, sealed, failure in client.inquire({"clinic": sealed}, deadline_s=30): ...
"""

from collections.abc import Iterator, Mapping

from confide.proto import inquiries_pb2 as pb
from confide.proto.inquiries_pb2_grpc import InquiriesStub
from confide.text import identifier, line
from confide.transport.control import ControlClient
from confide.transport.failures import own_metadata

SPARE_S = 10.0
MOST_CARD_BYTES = 256 << 10
MOST_INQUIRY_BYTES = 32 << 10
MOST_ANSWER_BYTES = 256 << 10


class InquiryClient(ControlClient):
    """One connection, as an asker or as a node."""

    def cards(self) -> list[bytes]:
        """Signed cards of the nodes that answer, unchecked."""
        self._greet()
        return list(self._call(self._inquiries.ListCards, pb.ListCardsRequest()).cards)

    def publish_card(self, card: bytes) -> None:
        """Leave this node's card at the coordinator."""
        self._greet()
        self._call(self._inquiries.PublishCard, pb.PublishCardRequest(card=card))

    def inquire(self, sealed: Mapping[str, bytes], *, deadline_s: int) -> Iterator[tuple[str, bytes, str]]:
        """(node, sealed answer, failure) as they come; one of the two is empty. Ends when all came, or too late."""
        self._greet()
        asked = [pb.Addressed(node=node, sealed=box) for node, box in sealed.items()]
        request = pb.InquireRequest(inquiries=asked, deadline_s=deadline_s)
        with self._failures():
            call = self._inquiries.Inquire(request, metadata=own_metadata(), timeout=deadline_s + SPARE_S)
            try:
                for reply in call:
                    yield line(reply.node, 64), reply.sealed, identifier(reply.failure) if reply.failure else ""
            finally:
                call.cancel()

    def deliveries(self, *, for_s: float) -> Iterator[tuple[str, bytes]]:
        """(delivery, sealed inquiry) for this node, for as long as the connection lasts and at most `for_s`."""
        self._greet()
        with self._failures():
            call = self._inquiries.AwaitInquiries(pb.AwaitInquiriesRequest(), metadata=own_metadata(), timeout=for_s)
            try:
                for one in call:
                    yield one.delivery, one.sealed
            finally:
                call.cancel()

    def answer(self, delivery: str, sealed: bytes, failure: str = "") -> None:
        """Hand an answer over, or the name of why the inquiry could not even be read."""
        outcome = {"failure": failure} if failure else {"sealed": sealed}
        self._call(self._inquiries.AnswerInquiry, pb.AnswerInquiryRequest(delivery=delivery, **outcome))

    @property
    def _inquiries(self) -> InquiriesStub:
        return InquiriesStub(self._channel)  # type: ignore[no-untyped-call]  # generated
