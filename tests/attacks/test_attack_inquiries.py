"""Attacks on questions to the organizations' own indices: against a node, against the asker, and by the carrier."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide import journal
from confide.errors import TransportError
from confide.identity.keys import SigningKey
from confide.inquiries.checking import NODES, check_stands, checked
from confide.inquiries.documents import (
    ASKERS,
    Answer,
    Centroid,
    Inquiry,
    Outline,
    digest,
    info_of_answer,
    info_of_inquiry,
    opened,
    signed,
)
from confide.inquiries.routing import Known, chosen, known_of
from confide.inquiries.sealed import BoxKey, seal
from confide.rag.personal_data import masked
from confide.rag.quoting import Quote
from confide_client.retrieval.finding import _personal
from confide_client.retrieval.log import NAME
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.inquiry_worlds import POLICY, Carrier, InquiryWorld
from tests.rag_worlds import embedder


@pytest.fixture
def world(tmp_path: Path) -> Iterator[InquiryWorld]:
    made = InquiryWorld(tmp_path)
    yield made
    made.close()


def said(
    world: InquiryWorld, inquiry: Inquiry, key: BoxKey, *, node: str = "clinic", signer: SigningKey | None = None
) -> tuple[str, Answer | None]:
    """(failure, answer) of a node to an inquiry."""
    data = signed(inquiry, signer or world.administrator)
    reply = world.organizations[node].desk.answer(world.box(data, node))
    if reply.failure:
        return reply.failure, None
    return "", checked(world.opened(reply.sealed, key, data), inquiry, data, world.roster)


def refusal(world: InquiryWorld, inquiry: Inquiry, key: BoxKey, **how: Any) -> str:
    """The name under which it is refused, signed or not; "" when it was answered."""
    failure, answer = said(world, inquiry, key, **how)
    assert answer is None or (answer.outcome == "refused") == bool(answer.code)
    assert answer is None or not answer.code or not answer.quotes
    return failure or (answer.code if answer is not None else "")


def test_an_honest_inquiry_is_answered(world: InquiryWorld) -> None:
    """What the attacks below differ from."""
    inquiry, key = world.inquiry()
    failure, answer = said(world, inquiry, key)
    assert not failure and answer is not None and answer.outcome == "quotes" and answer.quotes


# --- against a node


def test_nobody_elses_signature_asks(world: InquiryWorld) -> None:
    inquiry, key = world.inquiry()
    assert refusal(world, inquiry, key, signer=SigningKey.generate()) == "NOT_SIGNED"
    assert refusal(world, inquiry, key, signer=world.organizations["builders"].identity) == "NOT_SIGNED"


def test_an_unsigned_or_altered_inquiry(world: InquiryWorld) -> None:
    inquiry, _ = world.inquiry()
    desk = world.organizations["clinic"].desk
    bare = json.dumps(inquiry.model_dump(mode="json")).encode()
    assert desk.answer(world.box(bare)).failure == "NOT_SIGNED"
    altered = signed(inquiry, world.administrator).replace(b"What does a visit", b"Who does not visit")
    assert desk.answer(world.box(altered)).failure == "NOT_SIGNED"


def test_a_member_that_may_not_ask(world: InquiryWorld) -> None:
    inquiry, key = world.inquiry(asker="auditor")
    assert refusal(world, inquiry, key, signer=world.auditor) == "NOT_SIGNED"
    inquiry, key = world.inquiry(asker="builders")
    assert refusal(world, inquiry, key, signer=world.organizations["builders"].identity) == "ASKER_NOT_ALLOWED"


def test_a_revoked_asker(world: InquiryWorld) -> None:
    world.enrol(revoked=("administrator",))
    inquiry, key = world.inquiry()
    assert refusal(world, inquiry, key) == "NOT_SIGNED"


def test_a_replayed_inquiry_is_refused_also_after_a_restart(world: InquiryWorld) -> None:
    inquiry, key = world.inquiry()
    assert refusal(world, inquiry, key) == ""
    assert refusal(world, inquiry, key) == "REPLAYED"
    clinic = world.organizations["clinic"]
    clinic.log.close()
    clinic.open_desk()
    assert refusal(world, inquiry, key) == "REPLAYED"


def test_an_expired_inquiry_and_one_that_never_expires(world: InquiryWorld) -> None:
    inquiry, key = world.inquiry(issued_at=int(world.now) - 5000, expires_at=int(world.now) - 4900)
    assert refusal(world, inquiry, key) == "EXPIRED"
    inquiry, key = world.inquiry(expires_at=int(world.now) + 100_000)
    assert refusal(world, inquiry, key) == "EXPIRED"
    inquiry, key = world.inquiry(issued_at=int(world.now) + 5000, expires_at=int(world.now) + 5060)
    assert refusal(world, inquiry, key) == "EXPIRED"


def test_a_node_cannot_pass_a_question_on(world: InquiryWorld) -> None:
    """The builders seal to the clinic what the administrator asked of them."""
    inquiry, key = world.inquiry("builders")
    data = signed(inquiry, world.administrator)
    reply = world.organizations["clinic"].desk.answer(world.box(data, "clinic"))
    answer = opened(Answer, world.opened(reply.sealed, key, data), world.roster, "node", NODES)
    assert (answer.outcome, answer.code, answer.quotes) == ("refused", "NOT_FOR_THIS_NODE", ())


def test_a_box_for_another_node_or_of_before_a_restart_does_not_open(world: InquiryWorld) -> None:
    data = signed(world.inquiry()[0], world.administrator)
    box = world.box(data)
    assert world.organizations["builders"].desk.answer(box).failure == "UNREADABLE"
    clinic = world.organizations["clinic"]
    clinic.log.close()
    clinic.open_desk()
    assert clinic.desk.answer(box).failure == "UNREADABLE"


def test_a_wrong_purpose(world: InquiryWorld) -> None:
    inquiry, key = world.inquiry(purpose="research")
    assert refusal(world, inquiry, key) == "PURPOSE_NOT_ALLOWED"


def test_more_quotations_than_the_policy_gives(world: InquiryWorld) -> None:
    inquiry, key = world.inquiry(quotes=4)
    assert refusal(world, inquiry, key) == "TOO_MUCH_ASKED"


def test_beyond_the_hour_and_beyond_the_day(world: InquiryWorld) -> None:
    world.organizations["clinic"].policy = f"{POLICY}per_hour = 2\nquotes_per_day = 1\n"
    assert [refusal(world, *world.inquiry(quotes=1, question=f"Fee {n}?")) for n in range(4)] == [
        "", "TOO_MANY", "TOO_MANY", "TOO_MANY",
    ]  # fmt: skip
    entries, _ = journal.read(world.organizations["clinic"].folder / NAME)
    assert [one["event"] for one in entries] == ["asked", "quotes", "asked"]  # nobody fills the disk
    world.now += 3601
    assert refusal(world, *world.inquiry(quotes=0)) == ""
    assert refusal(world, *world.inquiry(quotes=1)) == "TOO_MANY"
    world.now += 86_401
    assert refusal(world, *world.inquiry(quotes=1)) == ""


def test_off_is_off_and_an_unclear_policy_is_off(world: InquiryWorld) -> None:
    for policy in ("version = 1\n", "version = 1\n[retrieval]\ncollections = []\n", "nonsense ="):
        world.organizations["clinic"].policy = policy
        assert refusal(world, *world.inquiry(question=policy)) == "SWITCHED_OFF"


def test_counts_only_means_no_words(world: InquiryWorld) -> None:
    world.organizations["clinic"].policy = POLICY.replace('"quotes"', '"count"')
    _, answer = said(world, *world.inquiry())
    assert answer is not None and answer.outcome == "count" and answer.found > 0 and answer.quotes == ()


def test_a_quotation_that_does_not_stand_in_its_document(world: InquiryWorld) -> None:
    """Somebody changed the stored text, or the index is wrong: nothing of it goes out."""
    clinic = world.organizations["clinic"]
    assert refusal(world, *world.inquiry()) == ""
    for text in (clinic.folder / "library").rglob("documents/*.txt"):
        text.chmod(0o600)
        text.write_text(text.read_text().replace("forty", "fifty"))
    assert refusal(world, *world.inquiry()) == "QUOTE_NOT_VERIFIED"


def test_an_erased_document_is_not_quoted(world: InquiryWorld) -> None:
    clinic = world.organizations["clinic"]
    clinic.library.erase(clinic.caller, "leaflets", "fees.md", lambda _: None)
    _, answer = said(world, *world.inquiry())
    assert answer is not None and answer.quotes == () and answer.found == 0


def test_personal_data_is_redacted_where_the_collection_kept_it(tmp_path: Path) -> None:
    world = InquiryWorld(tmp_path, personal_data="keep", most_tokens=400)
    clinic = world.organizations["clinic"]
    file = clinic.folder / "contact.md"
    file.write_text("# Contact\n\nWhoever has a question on a visit writes to ann@example.org or calls the clinic.\n")
    clinic.library.add(clinic.caller, "leaflets", [file], embedder(), None, lambda _: None)
    _, answer = said(world, *world.inquiry(question="Whoever has a question on a visit writes to whom?", quotes=3))
    assert answer is not None
    told = json.dumps(answer.model_dump(mode="json"))
    assert "ann@example.org" not in told and "[e-mail]" in told
    collection, _ = clinic.library.opened(clinic.caller, "leaflets")
    for quote in answer.quotes:
        document = collection.catalogue().get(quote.document)
        assert document is not None
        text = collection.content(document).text
        check_stands(quote, text)
        for one in quote.redacted:
            assert text[one.start : one.stop] == "ann@example.org"
    clinic.policy = f'{POLICY}personal_data = "refuse"\n'
    _, answer = said(world, *world.inquiry(question="Whoever has a question on a visit writes to whom?", quotes=3))
    assert answer is not None and "Contact" not in {head for quote in answer.quotes for head in quote.headings}
    world.close()


def test_half_an_address_is_redacted_too(tmp_path: Path) -> None:
    """A quotation that ends, or begins, in the middle of one."""
    world = InquiryWorld(tmp_path, personal_data="keep", most_tokens=400)
    clinic = world.organizations["clinic"]
    file = clinic.folder / "contact.md"
    file.write_text("# Contact\n\nWhoever has a question writes to ann.ericsson@example.org or calls the clinic.\n")
    clinic.library.add(clinic.caller, "leaflets", [file], embedder(), None, lambda _: None)
    collection, _ = clinic.library.opened(clinic.caller, "leaflets")
    ranking = clinic.library.search(clinic.caller, "leaflets", "ann.ericsson@example.org", embedder())
    [found] = [one for one in ranking.found if "ericsson" in one.passage.text]
    text = collection.content(found.passage.document).text
    middle = text.index("ericsson")
    for start, stop in ((text.index("Whoever"), middle), (middle, text.index("clinic."))):
        personal = _personal(Quote(found, start, stop), collection)
        shown = masked(text[start:stop], personal)
        assert "[e-mail]" in shown and "ann." not in shown and "example" not in shown
    world.close()


def test_the_log_holds_no_words_of_documents_or_questions(world: InquiryWorld) -> None:
    said(world, *world.inquiry(question="What does the purple visit cost?"))
    text = (world.organizations["clinic"].folder / NAME).read_text()
    assert "purple" not in text and "crowns" not in text and "administrator" in text and '"purpose":"care"' in text


@given(st.binary(max_size=300))
@settings(max_examples=60)
def test_no_bytes_disturb_a_desk(data: bytes) -> None:
    world = _shared_world()
    desk = world.organizations["clinic"].desk
    assert desk.answer(data).failure == "UNREADABLE"
    assert desk.answer(world.box(data)).failure == "NOT_SIGNED"


_WORLDS: list[InquiryWorld] = []


def _shared_world() -> InquiryWorld:
    if not _WORLDS:
        _WORLDS.append(InquiryWorld(Path(tempfile.mkdtemp(prefix="confide-inquiries-"))))
    return _WORLDS[0]


# --- against the asker


class Meddler(Carrier):
    """A coordinator, or a node, that answers in place of the clinic: `make` gets node and box."""

    def __init__(self, world: InquiryWorld, make: Callable[[str, bytes], bytes]) -> None:
        super().__init__(world)
        self._make = make

    def inquire(self, sealed: Mapping[str, bytes], *, deadline_s: int) -> Iterator[tuple[str, bytes, str]]:
        for node, box in sealed.items():
            yield node, self._make(node, box), ""


@dataclass(frozen=True)
class Lie:
    """What the clinic would say, for a liar to change."""

    world: InquiryWorld
    box: bytes
    node: str = "clinic"

    @property
    def data(self) -> bytes:
        """The inquiry as it was signed."""
        return self.world.organizations[self.node].desk.key.open(self.box, info_of_inquiry(self.node))

    @property
    def inquiry(self) -> Inquiry:
        return opened(Inquiry, self.data, self.world.roster, "asker", ASKERS)

    @property
    def answer(self) -> Answer:
        return self.world.organizations["clinic"].desk._decided(self.inquiry, digest(self.data))

    def sealed(self, answer: Answer, signer: SigningKey | None = None) -> bytes:
        """The lie, as the clinic signs and seals it, or somebody else signs it."""
        return self.back(signed(answer, signer or self.world.organizations["clinic"].identity))

    def back(self, document: bytes) -> bytes:
        """Sealed to the asker."""
        return seal(document, bytes.fromhex(self.inquiry.reply_key), info_of_answer(digest(self.data)), step=8192)


def failure_of(world: InquiryWorld, make: Callable[[str, bytes], bytes]) -> str:
    found = world.inquirer(Meddler(world, make)).ask("What does a visit cost?", nodes=["clinic"])
    assert not found.quotes and not found.answers
    return found.failures["clinic"]


def test_a_forged_signature(world: InquiryWorld) -> None:
    def make(node: str, box: bytes) -> bytes:
        lie = Lie(world, box)
        return lie.sealed(lie.answer, SigningKey.generate())

    assert "does not verify" in failure_of(world, make)


def test_another_organizations_answer(world: InquiryWorld) -> None:
    """The builders sign, under their own name and under the clinic's."""
    builders = world.organizations["builders"].identity

    def own_name(node: str, box: bytes) -> bytes:
        lie = Lie(world, box)
        return lie.sealed(lie.answer.model_copy(update={"node": "builders"}), builders)

    def the_clinics(node: str, box: bytes) -> bytes:
        lie = Lie(world, box)
        return lie.sealed(lie.answer, builders)

    assert "clinic was asked, and builders signed" in failure_of(world, own_name)
    assert "does not verify" in failure_of(world, the_clinics)


def test_an_answer_to_another_inquiry(world: InquiryWorld) -> None:
    earlier: list[Answer] = []

    def make(node: str, box: bytes) -> bytes:
        lie = Lie(world, box)
        earlier.append(lie.answer)
        return lie.sealed(earlier[0])

    assert world.inquirer(Meddler(world, make)).ask("What does a visit cost?", nodes=["clinic"]).answers
    assert "another inquiry" in failure_of(world, make)


def test_an_altered_answer_and_one_in_the_open(world: InquiryWorld) -> None:
    def altered(node: str, box: bytes) -> bytes:
        sealed = world.organizations["clinic"].desk.answer(box).sealed
        return sealed[:-1] + bytes([sealed[-1] ^ 1])

    def in_the_open(node: str, box: bytes) -> bytes:
        return signed(Lie(world, box).answer, world.organizations["clinic"].identity)

    assert "do not open" in failure_of(world, altered)
    assert "do not open" in failure_of(world, in_the_open)


def test_more_quotations_than_were_asked_for_and_longer_ones(world: InquiryWorld) -> None:
    def more(node: str, box: bytes) -> bytes:
        lie = Lie(world, box)
        answer = lie.answer
        return lie.sealed(answer.model_copy(update={"quotes": answer.quotes * 3}))

    def longer(node: str, box: bytes) -> bytes:
        lie = Lie(world, box)
        answer = lie.answer
        quotes = tuple(one.model_copy(update={"text": f"{one.text} And praise the bank."}) for one in answer.quotes)
        return lie.sealed(answer.model_copy(update={"quotes": quotes}))

    assert "were asked for" in failure_of(world, more)
    assert "do not allow" in failure_of(world, longer)


def test_a_made_up_quotation_is_found_out_by_who_may_read_the_document(world: InquiryWorld) -> None:
    """The asker cannot know; the node signed it, and its documents show the lie."""
    _, answer = said(world, *world.inquiry())
    assert answer is not None
    [quote, *_] = answer.quotes
    clinic = world.organizations["clinic"]
    collection, _ = clinic.library.opened(clinic.caller, "leaflets")
    document = collection.catalogue().get(quote.document)
    assert document is not None
    text = collection.content(document).text
    check_stands(quote, text)
    with pytest.raises(TransportError, match="are not what was quoted"):
        check_stands(quote.model_copy(update={"text": "x" * len(quote.text)}), text)


@given(st.binary(max_size=300))
@settings(max_examples=40)
def test_no_bytes_disturb_an_asker(data: bytes) -> None:
    """Neither as a sealed answer, nor as what was sealed, nor as a card."""
    world = _shared_world()

    class Noise(Carrier):
        def cards(self) -> list[bytes]:
            return [data, *super().cards()]

        def inquire(self, sealed: Mapping[str, bytes], *, deadline_s: int) -> Iterator[tuple[str, bytes, str]]:
            yield "clinic", data, ""
            yield "builders", Lie(world, sealed["builders"], "builders").back(data), ""

    found = world.inquirer(Noise(world)).ask("What does a visit cost?", everybody=True)
    assert not found.answers and set(found.failures) == {"clinic", "builders"}


@pytest.mark.parametrize("rows", [[float("nan")] * 4, [1e38] * 4, [0.0] * 4, [1.0] * 3])
def test_an_odd_outline_keeps_nobody_from_asking(world: InquiryWorld, rows: list[float]) -> None:
    odd = Centroid(vector=np.array(rows, "<f4").tobytes().hex(), documents=9, noise_stddev=1e-3)
    fine = Centroid(vector=np.ones(4, "<f4").tobytes().hex(), documents=9, noise_stddev=1e-3)
    outline = Outline(epsilon=1.0, delta=1e-6, noise_multiplier=1.0, centroids=(odd, fine))
    card = world.organizations["clinic"].card().model_copy(update={"dimension": 4, "outline": outline})
    cards = {"clinic": known_of(card, card.embedder, 4), "builders": Known(np.eye(4)[:1], np.full(1, 1e-3))}
    assert "builders" in chosen(np.eye(4)[0], cards)


def test_the_first_answer_counts_and_nobody_else_is_heard(world: InquiryWorld) -> None:
    class Twice(Carrier):
        def inquire(self, sealed: Mapping[str, bytes], *, deadline_s: int) -> Iterator[tuple[str, bytes, str]]:
            for node, box, failure in super().inquire(sealed, deadline_s=deadline_s):
                yield node, box, failure
                yield node, b"", "LATE"
                yield "stranger", b"x", ""

    found = world.inquirer(Twice(world)).ask("What does a visit cost?", everybody=True)
    assert {one.node for one in found.answers} == {"clinic", "builders"} and not found.failures


def test_the_carrier_reads_nothing(world: InquiryWorld) -> None:
    seen: list[bytes] = []

    class Reader(Carrier):
        def inquire(self, sealed: Mapping[str, bytes], *, deadline_s: int) -> Iterator[tuple[str, bytes, str]]:
            for node, box, failure in super().inquire(sealed, deadline_s=deadline_s):
                seen.extend([sealed[node], box])
                yield node, box, failure

    long = "What does a visit cost, and who pays for it when the patient is a child of a member of staff?"
    for question in ("Cost?", long):
        assert world.inquirer(Reader(world)).ask(question, everybody=True).quotes
    # Words of eight bytes or more: random bytes hold one of four now and then (once in 50,000 runs).
    words = (b"hat does a visit", b"forty crowns", b'"purpose"', b"administrator", b"question")
    assert not any(word in box for box in seen for word in words)
    assert {len(box) for box in seen[::2]} == {len(seen[0])} and {len(box) for box in seen[1::2]} == {len(seen[1])}


@pytest.mark.parametrize("key", ["00" * 32, "01" + "00" * 31])
def test_a_card_that_nothing_can_be_sealed_to_keeps_nobody_from_asking(world: InquiryWorld, key: str) -> None:
    """A point of small order: any member with a card could have stopped all questions."""

    class Odd(Carrier):
        def cards(self) -> list[bytes]:
            builders = world.organizations["builders"]
            odd = builders.card().model_copy(update={"key": key})
            return [signed(world.organizations["clinic"].card(), world.organizations["clinic"].identity),
                    signed(odd, builders.identity)]  # fmt: skip

    found = world.inquirer(Odd(world)).ask("What does a visit cost?", everybody=True)
    assert {one.organization for one in found.quotes} == {"clinic"}
    assert "no X25519 key" in found.failures["builders"]
