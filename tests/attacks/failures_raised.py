"""A pytest plugin, `-p tests.attacks.failures_raised`: writes down each failure name that the code under attack makes.

CONFIDE_FAILURES_RAISED names the file. What a test only names is not in it.
"""

import os
import sys
from pathlib import Path

import pytest
from confide.errors import FailureName, ProtocolFailure

_CODE = ("confide.", "confide_client.", "confide_server.")


def pytest_configure(config: pytest.Config) -> None:
    raised: set[str] = set()
    begin = ProtocolFailure.__init__

    def noted(self: ProtocolFailure, name: FailureName, detail: str, *, culprit: str | None = None) -> None:
        if sys._getframe(1).f_globals["__name__"].startswith(_CODE):
            raised.add(name.value)
        begin(self, name, detail, culprit=culprit)

    ProtocolFailure.__init__ = noted  # type: ignore[method-assign]
    path = Path(os.environ["CONFIDE_FAILURES_RAISED"])
    config.add_cleanup(lambda: path.write_text("\n".join(sorted(raised)), "utf-8") and None)
