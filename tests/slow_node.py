"""`confide node start FOLDER` on a machine that is slow: every loss takes CONFIDE_TEST_LOSS_S seconds longer.

And as long as there is a file of the name that CONFIDE_TEST_HOLD says.

Checkpoints are written after every step, so that a test need not wait a minute for one.
"""

import os
import sys
import time
from typing import Any


def slow_down(seconds: float, hold: str = "") -> None:
    """From now on, in this process."""
    from confide.methods.token_loss import TokenLoss
    from confide_client.training import checkpoint

    checkpoint.EVERY_S, checkpoint.MOST_OF_TIME = 0.0, 1e9
    usual = TokenLoss.__call__

    def slow(self: TokenLoss, model: Any, batch: Any) -> Any:
        time.sleep(seconds)
        while hold and os.path.exists(hold):
            time.sleep(0.05)
        return usual(self, model, batch)

    TokenLoss.__call__ = slow  # type: ignore[method-assign]


if __name__ == "__main__":
    slow_down(float(os.environ["CONFIDE_TEST_LOSS_S"]), os.environ.get("CONFIDE_TEST_HOLD", ""))
    from confide.cli import main

    sys.argv = ["confide", "node", "start", sys.argv[1]]
    main()
