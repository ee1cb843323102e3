"""A port's quota: what is over it is refused, and said to the operator without filling the log."""

import logging

from confide_server import bounded_http, quota
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


def test_an_answer_goes_out_piece_by_piece_so_that_tls_keeps_no_big_buffer() -> None:
    class Taking:
        def __init__(self) -> None:
            self.written: list[bytes] = []

        def write(self, data: bytes) -> None:
            self.written.append(data)

        def is_closing(self) -> bool:
            return True

    under = Taking()
    pieces = bounded_http._Pieces(under)  # type: ignore[arg-type]
    data = bytes(range(256)) * 1000
    pieces.write(data)
    pieces.write(b"end")
    assert b"".join(under.written) == data + b"end"
    assert max(map(len, under.written)) <= bounded_http.PIECE_BYTES and pieces.is_closing()
