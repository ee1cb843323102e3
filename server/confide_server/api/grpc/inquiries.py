"""The inquiries service (protos/confide/v1/inquiries.proto): between the control port and the relay."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
from confide.errors import TransportError
from confide.proto import inquiries_pb2 as pb

from confide_server.api.grpc.access import Caller
from confide_server.api.grpc.endpoint import Surroundings, handlers, snake
from confide_server.inquiries.relay import InquiryRelay

MOST_CARDS_BYTES = 1 << 20


class InquiryService:
    """What each method does. Every function takes the caller, who was let in by its rule, and the request."""

    def __init__(self, relay: InquiryRelay) -> None:
        self._relay = relay

    def handlers(self, at: Surroundings) -> "grpc.GenericRpcHandler[Any, Any]":
        """gRPC's handler of the whole service."""
        descriptor = pb.DESCRIPTOR.services_by_name["Inquiries"]
        functions = {snake(method.name): getattr(self, snake(method.name)) for method in descriptor.methods}
        return handlers(descriptor, functions, at)

    def list_cards(self, caller: Caller, request: pb.ListCardsRequest) -> pb.ListCardsReply:
        """Cards of the nodes that answer."""
        return pb.ListCardsReply(cards=self._relay.cards(MOST_CARDS_BYTES))

    def publish_card(self, caller: Caller, request: pb.PublishCardRequest) -> pb.PublishCardReply:
        """Keep the caller's card."""
        self._relay.publish(caller.name, request.card)
        return pb.PublishCardReply()

    def inquire(
        self, caller: Caller, request: pb.InquireRequest, active: Callable[[], bool]
    ) -> Iterator[pb.InquireReply]:
        """Hand the caller's inquiries over, and their answers back."""
        sealed = {one.node: one.sealed for one in request.inquiries}
        if len(sealed) != len(request.inquiries):
            raise TransportError("two inquiries to one node came at once; send one to each")
        for node, box, failure in self._relay.ask(caller.name, sealed, request.deadline_s, active):
            yield pb.InquireReply(node=node, failure=failure) if failure else pb.InquireReply(node=node, sealed=box)

    def await_inquiries(
        self, caller: Caller, request: pb.AwaitInquiriesRequest, active: Callable[[], bool]
    ) -> Iterator[pb.Delivery]:
        """What is asked of the caller, as it comes."""
        for number, box in self._relay.listen(caller.name, active):
            yield pb.Delivery(delivery=number, sealed=box)

    def answer_inquiry(self, caller: Caller, request: pb.AnswerInquiryRequest) -> pb.AnswerInquiryReply:
        """Hand the caller's answer to who asked."""
        self._relay.answer(caller.name, request.delivery, request.sealed, request.failure)
        return pb.AnswerInquiryReply()
