"""Tokenizer runs of tests: a specification, text, and states."""

from confide.runs.specification import Specification, parse_toml
from confide.tokenizer.counting import Corpus
from confide.tokenizer.merging import Floors, next_state
from confide.tokenizer.state import TokenizerState, first_state
from confide.tokenizer.terms import Terms

TEXTS = [
    "the wall must be twelve centimetres thick",
    "the thick wall is the thing that the mason thinks of",
    "lime mortar is right for an old brick wall, the mason thinks",
    "naïve façade — 壁 is a wall too; the other is not",
    "aaaa aaa aaaaaaa",
]
FLOORS = Floors(merge=1.5, keep=1.5)


def tokenizer_spec(
    *, rounds: int = 3, vocabulary: int = 300, privacy: str = "", extra: str = "", sealing: str = "none"
) -> Specification:
    """A small run."""
    return parse_toml(
        f"""
version = 1
name = "words"
method.name = "tokenizer"
tokenizer.vocabulary = {vocabulary}
{extra}
[federation]
rounds = {rounds}
data = "shard"
clip_norm = 1e4
[sealing]
kind = "{sealing}"
{privacy}
"""
    )


def corpus(texts: list[str]) -> Corpus:
    """A unit for each text."""
    return Corpus.of([[text] for text in texts])


def states(spec: Specification, texts: list[str]) -> list[TokenizerState]:
    """The first state and the one after each round, by exact counts."""
    terms, made = Terms.of(spec), [first_state()]
    for _ in range(spec.federation.rounds):
        made.append(next_state(made[-1], corpus(texts).counts(made[-1]), terms, FLOORS))
    return made
