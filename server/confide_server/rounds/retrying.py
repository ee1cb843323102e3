"""How long until what went wrong is tried again: soon where it passes by itself, later and later where it does not.

>>> from confide.errors import StateError
>>> [wait_s(RetryableError("the disk is full"), failures, 5.0) for failures in (1, 2, 20)]
[5.0, 5.0, 5.0]
>>> [wait_s(StateError("a journal is damaged"), failures, 5.0) for failures in (1, 2, 20)]
[5.0, 10.0, 60.0]
"""

from confide.errors import RetryableError

MOST_RETRY_S = 60.0


def wait_s(error: Exception, failures: int, retry_s: float) -> float:
    """Seconds. failures: how many there were in a row, this one included."""
    if isinstance(error, RetryableError):
        return retry_s
    return min(retry_s * 2.0 ** min(failures - 1, 16), max(MOST_RETRY_S, retry_s))
