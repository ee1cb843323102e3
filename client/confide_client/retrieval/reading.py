"""From sealed bytes to an inquiry that a member signed for this node, and that is in time."""

from confide.errors import ConfideError
from confide.identity.roster import MAX_CLOCK_SKEW_S, Roster, utc
from confide.inquiries.documents import ASKERS, MOST_VALID_S, Inquiry, info_of_inquiry, opened
from confide.inquiries.refusals import InquiryRefused, Refusal
from confide.inquiries.sealed import BoxKey


def unsealed(box: bytes, key: BoxKey, node: str) -> bytes:
    """The signed inquiry. Raises InquiryRefused UNREADABLE."""
    try:
        return key.open(box, info_of_inquiry(node))
    except ConfideError as error:
        raise InquiryRefused(Refusal.UNREADABLE, str(error)) from error


def read(data: bytes, roster: Roster, now: float) -> Inquiry:
    """Who asks what, verified. Raises InquiryRefused NOT_SIGNED: not by an active member who may ask."""
    try:
        roster.check_fresh(now)
        return opened(Inquiry, data, roster, "asker", ASKERS)
    except ConfideError as error:
        raise InquiryRefused(Refusal.NOT_SIGNED, str(error)) from error


def check_addressed(inquiry: Inquiry, node: str, now: float) -> None:
    """Raise InquiryRefused unless it is for this node, and to be answered now."""
    if inquiry.node != node:
        raise InquiryRefused(Refusal.NOT_FOR_THIS_NODE, f"the inquiry is for {inquiry.node}, and this is {node}")
    if inquiry.expires_at - inquiry.issued_at > MOST_VALID_S or inquiry.issued_at > now + MAX_CLOCK_SKEW_S:
        raise InquiryRefused(
            Refusal.EXPIRED, f"the inquiry is valid beyond {MOST_VALID_S} s of now; set the machines' clocks"
        )
    if now > inquiry.expires_at + MAX_CLOCK_SKEW_S:
        raise InquiryRefused(
            Refusal.EXPIRED, f"the inquiry could be answered until {utc(inquiry.expires_at)}; it is {utc(now)} here"
        )
