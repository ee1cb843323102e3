"""`[retrieval]` of policy.toml: which questions this node's own index answers. Left out, none.

>>> rules = Retrieval(collections=("leaflets",), askers=("desk",), purposes=("care",))
>>> rules.answers, rules.most_quotes
('count', 3)
>>> rules.check(asker="desk", purpose="research", quotes=0)
Traceback (most recent call last):
confide.inquiries.refusals.InquiryRefused: this node answers no questions for the purpose 'research'
"""

from typing import Annotated, Literal

from confide.inquiries.refusals import InquiryRefused, Refusal
from confide.runs.sections import Name
from pydantic import BaseModel, ConfigDict, Field


class Retrieval(BaseModel):
    """What may be asked, by whom, for what, how often, and what is shown."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    collections: tuple[Name, ...] = Field(min_length=1, max_length=16)
    """Of `confide node rag`: those that are searched."""
    askers: tuple[Name, ...] = ()
    """Members, by name, whose signed inquiries are answered."""
    purposes: tuple[Name, ...] = ()
    """What an inquiry may be for: the asker's word, signed, and kept in this node's log."""
    answers: Literal["count", "quotes"] = "count"
    """count: how many passages are near enough, at most ten. quotes: their words too."""
    most_quotes: Annotated[int, Field(ge=1, le=10)] = 3
    """In one answer."""
    quotes_per_day: Annotated[int, Field(ge=0)] = 200
    """To all askers together, in any 24 hours."""
    per_hour: Annotated[int, Field(ge=0)] = 60
    """Inquiries of one asker, refused ones included, in any hour."""
    personal_data: Literal["mask", "refuse", "keep"] = "mask"
    """What is done with personal data in a quotation (of what `keep` let into the collection)."""
    least_cosine: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.3
    """A passage that is less near to the question is neither counted nor quoted."""
    keep_questions: bool = False
    """Keep the questions' text in this node's log; else their hash only."""
    budget: Annotated[str, Field(pattern=r"^([a-z0-9][a-z0-9._-]{0,63})?$")] = ""
    """The group under [budgets] that pays for an outline (`confide node rag outline`); "": none is made."""

    def check(self, *, asker: str, purpose: str, quotes: int) -> None:
        """Raise InquiryRefused unless this asker may ask for that. What is allowed is not listed: this goes to it."""
        if asker not in self.askers:
            raise InquiryRefused(Refusal.ASKER_NOT_ALLOWED, f"this node answers no questions of {asker}")
        if purpose not in self.purposes:
            raise InquiryRefused(
                Refusal.PURPOSE_NOT_ALLOWED, f"this node answers no questions for the purpose {purpose!r}"
            )
        if quotes > self.most_quotes and self.answers == "quotes":
            raise InquiryRefused(
                Refusal.TOO_MUCH_ASKED,
                f"{quotes} quotations were asked for; this node gives {self.most_quotes} in one answer",
            )
