"""Every failure name of docs/sealing.md is reached by an attack, and named in the document."""

from pathlib import Path

from confide.errors import FailureName

HERE = Path(__file__).parent
PRIVACY = {FailureName.BUDGET_EXHAUSTED}


def test_every_name_is_reached_and_documented() -> None:
    attacks = "\n".join(path.read_text() for path in HERE.glob("test_attack_*.py") if path != Path(__file__))
    document = (HERE.parent.parent / "docs" / "sealing.md").read_text()
    reached = {name for name in FailureName if f"FailureName.{name.value})" in attacks or f'"{name.value}"' in attacks}
    assert set(FailureName) - reached <= PRIVACY
    assert not [name for name in FailureName if f"| {name.value} |" not in document and name.value != "MALFORMED"]
