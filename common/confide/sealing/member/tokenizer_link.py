"""The model chain of a tokenizer run: each state must follow from the last by the public rule (docs/tokenizer.md).

Guarantee: merges are only appended, no faster than specified; over one round each was among the pairs that this node
counted, and what is counted next follows from them.
"""

from confide.errors import FailureName, ProtocolFailure, UpdateError
from confide.runs.specification import Specification
from confide.tokenizer.merging import check_step
from confide.tokenizer.state import parse_state
from confide.tokenizer.terms import Terms


class TokenizerLink:
    """A confide.sealing.member.chain.Link."""

    def __init__(self, specification: Specification) -> None:
        self._terms = Terms.of(specification)

    def check(self, model: bytes | memoryview, round_number: int) -> None:
        """The state after `round_number` - 1 rounds."""
        with _Broken():
            state = parse_state(model, self._terms)
            if state.round != round_number - 1:
                raise UpdateError(f"the tokenizer state is of round {state.round}; round {round_number} was asked")

    def check_step(self, last: bytes, model: bytes | memoryview, last_round: int, rounds: int) -> None:
        """How many rounds lie between, the states say too. They are small: parsed again, once a round."""
        with _Broken():
            check_step(parse_state(last, self._terms), parse_state(model, self._terms), self._terms)


class _Broken:
    """Turns a refused state into MODEL_CHAIN_BROKEN."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UpdateError):
            raise ProtocolFailure(FailureName.MODEL_CHAIN_BROKEN, str(error)) from error
