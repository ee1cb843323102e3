"""Every failure name of docs/sealing.md is reached by an attack, and named in the document."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from confide.errors import FailureName

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PRIVACY = {FailureName.BUDGET_EXHAUSTED}


def test_every_name_is_reached_and_documented() -> None:
    attacks = "\n".join(path.read_text() for path in HERE.glob("test_attack_*.py") if path != Path(__file__))
    document = (ROOT / "docs" / "sealing.md").read_text()
    reached = {name for name in FailureName if f"FailureName.{name.value})" in attacks or f'"{name.value}"' in attacks}
    assert set(FailureName) - reached <= PRIVACY
    assert not [name for name in FailureName if f"| {name.value} |" not in document and name.value != "MALFORMED"]


@pytest.mark.full
def test_every_name_is_raised_by_the_code_under_attack(tmp_path: Path) -> None:
    raised = tmp_path / "raised"
    environment = os.environ | {"CONFIDE_FAILURES_RAISED": str(raised)}
    attacks = [str(path) for path in sorted(HERE.glob("test_attack_*.py")) if path != Path(__file__)]
    options = ["-q", "-m", "not full", "-p", "tests.attacks.failures_raised", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *attacks],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=3000, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert set(FailureName) - {FailureName(name) for name in raised.read_text("utf-8").split()} <= PRIVACY
