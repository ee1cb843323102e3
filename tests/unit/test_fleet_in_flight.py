"""Polls that wait for mail: what is there goes to the connection that is alive."""

import asyncio

from confide_server.fleet.flower.in_flight import InFlight

NODE = 7


def test_a_poll_is_held_until_there_is_mail() -> None:
    async def play() -> tuple[bool, bool]:
        board = InFlight()
        board.serve_on(asyncio.get_running_loop())
        waiting = asyncio.create_task(board.wait_mail(NODE, 5.0))
        await asyncio.sleep(0.01)
        board.mail(NODE)
        return await waiting, await board.wait_mail(NODE, 0.01)

    assert asyncio.run(play()) == (True, False)


def test_a_poll_of_a_dead_connection_takes_nothing_from_the_new_one() -> None:
    async def play() -> tuple[bool, bool]:
        board = InFlight()
        board.serve_on(asyncio.get_running_loop())
        stale = asyncio.create_task(board.wait_mail(NODE, 5.0))
        await asyncio.sleep(0.01)
        board.activated(NODE)
        board.mail(NODE)
        return await stale, await board.wait_mail(NODE, 0.01)

    assert asyncio.run(play()) == (False, True)
