"""The connection on which questions come: outwards, like everything of a node. It is made again whenever it ends."""

import logging
import threading
import time
from collections.abc import Callable

from confide.errors import ConfideError
from confide.identity.member import LocalMember
from confide.inquiries.documents import MOST_CARD_S, IndexCard, Outline, signed
from confide.rag.embedder import Embedder
from confide.transport.inquiries import InquiryClient

from confide_client.retrieval.desk import Desk

log = logging.getLogger(__name__)
RENEW_S = MOST_CARD_S / 4
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 30.0


class Listener:
    """Publishes the card, and answers what comes, until `stop`."""

    def __init__(
        self,
        member: Callable[[], LocalMember],
        desk: Desk,
        embedder: Embedder,
        outline: Callable[[], Outline | None],
        *,
        proxy: str = "",
        said: Callable[[str], None] = lambda text: None,
    ) -> None:
        """member, outline: as they stand now, at every connection. said: told once when the first one stands."""
        self._member, self._desk, self._embedder, self._outline = member, desk, embedder, outline
        self._proxy, self._said = proxy, said
        self._stopped = threading.Event()
        self._client: InquiryClient | None = None

    def run(self) -> None:
        """Until `stop` is called, from another thread or a signal's handler."""
        retry_s = FIRST_RETRY_S
        while not self._stopped.is_set():
            begun = time.monotonic()
            try:
                self._connection()
            except ConfideError as error:
                if not self._stopped.is_set() and time.monotonic() - begun < RENEW_S - 1:
                    log.warning("questions do not come at the moment: %s", error)
            retry_s = FIRST_RETRY_S if time.monotonic() - begun > LAST_RETRY_S else min(2 * retry_s, LAST_RETRY_S)
            self._stopped.wait(retry_s)

    def stop(self) -> None:
        """Let go of the connection; an answer that is being made still goes out if it can."""
        self._stopped.set()
        if self._client is not None:
            self._client.close()

    def _connection(self) -> None:
        member = self._member()
        with InquiryClient.of_member(member, proxy=self._proxy) as client:
            self._client = client
            client.publish_card(signed(self._card(member.name), member.identity))
            deliveries = client.deliveries(for_s=RENEW_S)
            self._said(f"{member.name} answers questions")
            for number, box in deliveries:
                reply = self._desk.answer(box)
                client.answer(number, reply.sealed, reply.failure)

    def _card(self, node: str) -> IndexCard:
        now = int(time.time())
        return IndexCard(
            node=node,
            key=self._desk.key.public.hex(),
            embedder=self._embedder.sha256,
            dimension=self._embedder.dimension,
            issued_at=now,
            expires_at=now + MOST_CARD_S,
            outline=self._outline(),
        )
