"""Polls that wait for mail: what is there goes to the connection that is alive. Objects that messages share."""

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from confide_server.fleet.flower.in_flight import InFlight
from confide_server.fleet.flower.nodes import KnownNodes, Node
from confide_server.fleet.flower.store import FileObjectStore
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.message_pb2 import Message, ObjectTree

NODE = 7
KEY = ec.generate_private_key(ec.SECP384R1()).public_key()


def test_a_poll_is_held_until_there_is_mail() -> None:
    async def play() -> tuple[bool, bool]:
        board = InFlight(KnownNodes())
        board.serve_on(asyncio.get_running_loop())
        waiting = asyncio.create_task(board.wait_mail(NODE, 600.0))
        await asyncio.sleep(0.01)
        board.mail(NODE)
        return await waiting, await board.wait_mail(NODE, 0.01)

    assert asyncio.run(play()) == (True, False)


def test_a_poll_of_a_dead_connection_takes_nothing_from_the_new_one() -> None:
    async def play() -> tuple[bool, bool]:
        board = InFlight(KnownNodes())
        board.serve_on(asyncio.get_running_loop())
        stale = asyncio.create_task(board.wait_mail(NODE, 600.0))
        await asyncio.sleep(0.01)
        board.nodes.activated(NODE)
        board.mail(NODE)
        return await stale, await board.wait_mail(NODE, 0.01)

    assert asyncio.run(play()) == (False, True)


def test_parts_that_messages_share_outlive_each_of_them(tmp_path: Path) -> None:
    """Messages that share a part are registered and deleted by many threads at once, as polls and sessions do."""
    store, part = FileObjectStore(tmp_path / "objects"), "a" * 64

    def come_and_go(worker: int) -> None:
        for number in range(300):
            message = f"{worker:08x}{number:056x}"
            tree = ObjectTree(object_id=message, children=[ObjectTree(object_id=part)])
            store.preregister(1, tree)
            store.delete(message)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(come_and_go, range(8)))
    finally:
        sys.setswitchinterval(before)
    assert len(store) == 0


def test_polls_are_held_longer_the_more_nodes_there_are() -> None:
    board = InFlight(KnownNodes())

    async def idle() -> list[float]:
        seen, polls = [board.hold_s], list[asyncio.Task[bool]]()
        for count in (100, 400, 500, 1000):
            polls += [asyncio.create_task(board.wait_mail(len(polls) + number)) for number in range(count)]
            await asyncio.sleep(0)
            seen.append(board.hold_s)
        for poll in polls:
            poll.cancel()
        await asyncio.gather(*polls, return_exceptions=True)
        return [*seen, board.hold_s]

    assert asyncio.run(idle()) == [2.0, 2.0, 10.0, 20.0, 20.0, 2.0]


def test_a_reply_is_told_once_it_is_complete_and_not_when_it_is_announced_anew() -> None:
    board = InFlight(KnownNodes())
    board.post(Message(), ObjectTree(object_id="to-a"), 1, {"x"}, 100)
    board.post(Message(), ObjectTree(object_id="to-b"), 2, {"y"}, 100)
    board.begin_reply("to-b", "from-b", "session-b", {"part"})
    assert board.wait_answer({"to-a", "to-b"}, 0.0) is None
    board.begin_reply("to-a", "from-a", "session-a", set())
    assert board.wait_answer({"to-a", "to-b"}, 0.0) == ("to-a", "from-a")
    board.pushed("session-b", "part")
    assert board.wait_answer({"to-b"}, 0.0) == ("to-b", "from-b")
    board.begin_reply("to-b", "again", "session-c", {"other"})
    assert board.wait_answer({"to-b"}, 0.0) is None
    assert board.may_read(1, "x") and not board.may_read(2, "x")
    assert board.close("to-a") == "from-a"
    assert board.wait_answer({"to-a"}, 0.0) is None and not board.may_read(1, "x")


def test_each_instruction_is_taken_once_in_order_by_its_node_and_not_after_it_was_withdrawn() -> None:
    board = InFlight(KnownNodes())
    for name, node_id in (("first", NODE), ("other", 8), ("withdrawn", NODE), ("second", NODE)):
        board.post(Message(), ObjectTree(object_id=name), node_id, {name}, 100)
    board.close("withdrawn")

    async def take() -> list[str | None]:
        taken: list[str | None] = []
        board.mail(NODE)
        while await board.wait_mail(NODE, 0.0):  # one that is left makes mail again
            found = board.take(NODE)
            taken.append(found[1].object_id if found else None)
        return taken

    assert asyncio.run(take()) == ["first", "second"]
    assert board.take(NODE) is None and board.is_to(NODE, "first"), "it is answered after it was taken"
    assert board.take(8) is not None and board.close("other") is None


def test_what_is_out_to_a_node_that_leaves_the_roster_is_closed() -> None:
    board = InFlight(KnownNodes())
    staying, leaving = (Node(f"node-{number}", number, b"%d" % number, KEY) for number in (1, 2))
    board.set_nodes([staying, leaving])
    board.post(Message(), ObjectTree(object_id="to-1"), 1, {"x"}, 100)
    board.post(Message(), ObjectTree(object_id="to-2"), 2, {"x"}, 100)
    board.set_nodes([staying])
    assert board.take(2) is None and not board.may_read(2, "x") and not board.is_to(2, "to-2")
    assert board.may_read(1, "x") and board.take(1) is not None
    assert board.nodes.all() == (staying,)
