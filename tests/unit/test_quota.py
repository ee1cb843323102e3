"""A port's quota: what is over it is refused, and said to the operator without filling the log."""

import logging

from confide_server import quota
from confide_server.quota import Quota


def test_refused_connections_are_said_once_a_minute(caplog, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(quota.time, "monotonic", lambda: now[0])
    limited = Quota(most=8, of_one_address=2)
    with caplog.at_level(logging.WARNING, "confide_server.quota"):
        tickets = [limited.admit("10.0.0.1") for _ in range(4)]
        assert [ticket is None for ticket in tickets] == [False, False, True, True]
        now[0] += quota.SAYING_EVERY_S
        assert limited.admit("10.0.0.1") is None
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        f"{count} connections refused, last 10.0.0.1: 2 of at most 2 of one address are open, 2 of at most 8 in all"
        for count in (1, 2)
    ]
