"""A coordinator that lies about a tokenizer's state: what an honest node refuses, and what it cannot see."""

from pathlib import Path

import numpy as np
import pytest
from confide.codec.tensors import model_digest
from confide.errors import FailureName, ProtocolFailure, UpdateError
from confide.proto import fleet_pb2, sealing_pb2
from confide.runs.contribution import Contribution
from confide.sealing.roles import Opened
from confide.tokenizer.merging import check_step
from confide.tokenizer.state import TokenizerState, first_state, key_of
from confide.tokenizer.terms import Terms
from confide_client.data.datasets import LocalData
from confide_client.training.tokens import TokenizerTrainer

from tests.attacks.liar import A, refused, rewrite, stop_before
from tests.sealing_harness import Federation
from tests.tokenizer_runs import TEXTS, corpus, states, tokenizer_spec

SPEC = tokenizer_spec(rounds=4, sealing="sealed")
TERMS = Terms.of(SPEC)
Open = sealing_pb2.SealedOpen


def keys(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(sorted(int(key_of(*pair)) for pair in pairs), dtype=np.int64)


def honest() -> tuple[TokenizerState, TokenizerState]:
    made = states(SPEC, TEXTS)
    return made[1], made[2]


def lies() -> dict[str, TokenizerState]:
    last, new = honest()
    name = keys((ord("Z"), last.size - 1))
    assert not np.isin(name, last.candidates).any()
    stranger = (ord("Z"), ord("q"))  # nobody counted it: it does not occur
    overlapping = int(last.candidates[0] >> 20), int(last.candidates[0] & 0xFFFFF)
    right = overlapping[1]
    next_one = next((right, int(key & 0xFFFFF)) for key in last.candidates if key >> 20 == right)
    return {
        "a pair outside the public rule is to be counted": TokenizerState(
            2, new.merges, np.sort(np.append(new.candidates, name))
        ),
        "a merge that was not counted": TokenizerState(2, (*last.merges, stranger), last.candidates),
        "a merge taken back": TokenizerState(2, new.merges[1:], last.candidates),
        "merges in another order": TokenizerState(2, (*new.merges[1::-1], *new.merges[2:]), last.candidates),
        "two merges that overlap": TokenizerState(2, (*last.merges, overlapping, next_one), last.candidates),
    }


@pytest.mark.parametrize("lie", list(lies()))
def test_a_state_that_does_not_follow(lie: str) -> None:
    last, _ = honest()
    with pytest.raises(UpdateError):
        check_step(last, lies()[lie], TERMS)


class Counting(Federation):
    """Members that count their own text instead of making up updates."""

    def update(self, name: str, slot: int) -> np.ndarray:
        update = np.zeros(self.size, dtype=np.float32)
        state = self.states[-1]
        update[: len(state.candidates)] = corpus(TEXTS[int(name[-2:]) :]).counts(state)
        return update

    def contribution(self, name: str, plan: fleet_pb2.SlotOpen) -> Contribution:
        return Contribution(self.update(name, plan.slot))

    states: list[TokenizerState]


def federation(folder: Path) -> Counting:
    first = np.frombuffer(first_state().to_bytes(), dtype=np.uint8)
    made = Counting(folder, 3, SPEC, size=TERMS.candidates, model=first)  # type: ignore[arg-type]
    made.states = [first_state()]
    return made


def test_sealed_rounds_add_the_counts_up_and_a_node_refuses_every_lie(tmp_path: Path) -> None:
    made = federation(tmp_path)
    outcome = made.slot(round=1)
    assert isinstance(outcome, Opened)
    expected = sum(corpus(TEXTS[number:]).counts(first_state()) for number in range(3))
    # 16 bits over a clip of 1e4: a count of the sum is off by a fraction of one.
    assert np.abs(outcome.update_sum[: 1 << 16] - expected).max() < 0.2
    raw = made.model.tobytes()
    exact = states(SPEC, [text for number in range(3) for text in TEXTS[number:]])[1]
    assert raw == exact.to_bytes()
    made.states.append(exact)
    body = stop_before(made, fleet_pb2.TRAIN, round=2).bodies[A]
    new = states(SPEC, [text for number in range(3) for text in TEXTS[number:]])[2]
    for wrong in (
        new.to_bytes(),  # honest, but of the next round
        TokenizerState(1, (*exact.merges[:-1], (exact.merges[0][1], ord("q"))), exact.candidates).to_bytes(),
        TokenizerState(1, (*exact.merges, (ord("Z"), ord("q"))), exact.candidates).to_bytes(),
        raw + b"x",
        b"",
    ):

        def change(message: sealing_pb2.SealedOpen, wrong: bytes = wrong) -> None:
            message.model_sha256 = model_digest(wrong)

        with refused(FailureName.MODEL_CHAIN_BROKEN):
            made.members[A].handle(
                fleet_pb2.TRAIN, rewrite(Open, body, change), lambda plan: made.contribution(A, plan), wrong
            )
    made.members[A].handle(fleet_pb2.TRAIN, body, lambda plan: made.contribution(A, plan), raw)


def test_without_sealing_the_node_checks_by_itself() -> None:
    spec = tokenizer_spec(rounds=4)
    trainer, data = TokenizerTrainer(spec), LocalData(train=[{"text": text} for text in TEXTS], evaluation=[])

    def ask(state: TokenizerState, round_number: int) -> Contribution:
        decoded = trainer.schema.decode(state.to_bytes())
        return trainer.contribute(decoded, data, fleet_pb2.SlotOpen(slot=1, round=round_number, attempt=1))

    assert ask(first_state(), 1).update.sum() == corpus(TEXTS).counts(first_state()).sum()
    last, new = honest()
    ask(last, 2)
    for state, number in [(new, 2), (new, 4), *((lie, 3) for lie in lies().values())]:
        with pytest.raises(ProtocolFailure, match="MODEL_CHAIN_BROKEN"):
            ask(state, number)
    assert ask(new, 3).metrics == {}


def test_what_no_node_can_see_a_lie_about_the_sum_steers_the_merges() -> None:
    """Documented in docs/tokenizer.md: only differential privacy bounds what such a coordinator learns."""
    word, state = b"Zaragoza", first_state()
    terms = Terms(vocabulary=600, special_tokens=(), candidates=65536, max_token_bytes=32, rounds=4)
    for pieces in ((b"Za", b"ra", b"go", b"za"), (b"Zara", b"goza"), (word,)):
        tokens = state.tokens
        pairs = [(tokens.index(p[: len(p) // 2]), tokens.index(p[len(p) // 2 :])) for p in pieces]
        table = dict.fromkeys(int(key_of(*pair)) for pair in pairs)
        follows = [
            (a, b)
            for a in range(state.size, state.size + len(pairs))
            for b in range(state.size, state.size + len(pairs))
        ]
        lied = TokenizerState(
            state.round + 1, (*state.merges, *pairs), np.sort(np.append(state.candidates, keys(*follows)))
        )
        kept = np.setdiff1d(lied.candidates, list(table))
        lied = TokenizerState(lied.round, lied.merges, kept[-terms.candidates :])
        check_step(state, lied, terms)
        state = lied
    assert word in state.tokens
