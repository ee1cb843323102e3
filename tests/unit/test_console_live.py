"""Ticks to open pages, over real connections: soon, to whom they concern, and no longer than the session."""

import asyncio
import collections
import itertools
import queue
import threading
import time

import httpx
import pytest
from confide.errors import TransportError
from confide.proto import admin_pb2 as pb
from confide.web.serving import listening, server
from confide_server.console.federation import live
from confide_server.console.federation.happened import Happened
from confide_server.console.federation.reading import Acting, Reader
from confide_server.console.roles import Role
from confide_server.console.settings import Settings
from confide_server.console.web.app import Console

from tests.console_world import NODES, RUN_ID, MemoryCoordinator, browser, standing, welcome
from tests.waiting import until


class Happening(MemoryCoordinator):
    """Its stream brings what a test puts into the queue."""

    def __init__(self):
        super().__init__()
        self.queue, self.read = queue.Queue(), []

    def happens(self, **what):
        event = pb.Event(number=len(self.happened) + 1, run_id=RUN_ID, time=time.time(), **what)
        self.happened.append(event)
        self.queue.put(event)

    def events(self, request, acting):
        yield pb.Event(clock=time.time(), kind="alive", alive=pb.Alive())
        if not request.newest_only:
            self.read.append((acting.role, acting.organization, request.after))
            yield from [one for one in self.happened if one.number > request.after]
        while request.newest_only:
            try:
                yield self.queue.get(timeout=0.2)
            except queue.Empty:
                yield pb.Event(kind="alive", alive=pb.Alive())


@pytest.fixture
def console(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "HEARTBEAT_S", 0.3)
    with listening("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        made = standing(Console(tmp_path, Settings(), Happening(), issuer="x", port=port))
        web = server(made.app())
        thread = threading.Thread(target=lambda: web.run(sockets=[listener]), daemon=True)
        thread.start()
        while not web.started:
            time.sleep(0.01)
        yield made
        web.should_exit = True
        thread.join(60)
        made.close()


def cookie_of(console, role, organization=""):
    client = browser(console, base_url=console.address)
    welcome(client, console.people.invite(role, organization), f"{role.value}-{organization or 'x'}")
    return {"cookie": f"confide-console={client.cookies['confide-console']}"}


class Listener(threading.Thread):
    """One open page. looks: asks for the part of the run's page that changes at each tick, as a browser does."""

    def __init__(self, console, headers, looks=False):
        super().__init__(daemon=True)
        self.console, self.headers, self.ticks, self.status, self.ended = console, headers, [], 0, False
        self.looks, self.shown = looks, []
        self.start()

    def run(self):
        address = f"{self.console.address}/live"
        with httpx.stream("GET", address, headers=self.headers, timeout=60) as answer:
            self.status = answer.status_code
            for line in answer.iter_lines():
                if line in {"event: tick", "event: step"}:
                    self.ticks.append(line)
                    if self.looks:
                        self.shown.append(
                            httpx.get(f"{self.console.address}/runs/{RUN_ID}/live", headers=self.headers, timeout=60)
                        )
        self.ended = True


def signed_out(console, listeners):
    for person in console.people.all():
        console.sessions.end_all(person)
    until(lambda: all(one.ended for one in listeners))


def test_every_open_page_hears_soon_and_no_other_does(console):
    headers, mine = cookie_of(console, Role.AUDITOR), cookie_of(console, Role.ORGANIZATION, NODES[0])
    listeners = [Listener(console, headers) for _ in range(20)] + [Listener(console, mine)]
    until(lambda: console.live.watchers == len(listeners))
    console.reader._coordinator.queue.put(pb.Event(number=1, run_id=RUN_ID, run_stopped=pb.RunStopped(round=1)))
    until(lambda: all(one.ticks for one in listeners))
    console.reader._coordinator.queue.put(pb.Event(number=2, run_id="ff" * 16, run_stopped=pb.RunStopped(round=1)))
    until(lambda: all(len(one.ticks) == 2 for one in listeners[:-1]))
    time.sleep(0.3)
    assert len(listeners[-1].ticks) == 1, "a run of others"
    signed_out(console, listeners)


def test_whoever_may_not_watch_hears_nothing(console):
    for headers in ({}, cookie_of(console, Role.ANNOTATOR)):
        listener = Listener(console, headers)
        until(lambda listener=listener: listener.ended)
        assert listener.status in {303, 403} and not listener.ticks


def test_a_round_is_asked_for_and_rendered_once_for_a_role_however_many_watch(console, monkeypatch):
    coordinator, moments, rendered = console.reader._coordinator, itertools.count(), []
    console.reader._clock = lambda: 1e-6 * next(moments)  # it goes on, and nothing grows old
    render = console.frame.pages.render
    monkeypatch.setattr(
        console.frame.pages, "render", lambda name, /, **given: (rendered.append(name), render(name, **given))[1]
    )
    headers = (cookie_of(console, Role.AUDITOR), cookie_of(console, Role.ORGANIZATION, NODES[0]))
    listeners = [Listener(console, one, looks=True) for one in headers for _ in range(12)]
    until(lambda: console.live.watchers == len(listeners))
    for number in (1, 2):
        for noted in (coordinator.asked, coordinator.read, rendered):
            noted.clear()
        coordinator.happens(round_committed=pb.RoundCommitted(round=number))
        until(lambda number=number: all(len(one.shown) == number for one in listeners))
        assert all(f"round {number} committed" in one.shown[-1].text for one in listeners)
        asked = collections.Counter((method, acting.role) for method, acting in coordinator.asked)
        assert asked == {
            (method, role): 1
            for method in ("GetRun", "ListRounds", "ListMembers")
            for role in (Role.AUDITOR, Role.ORGANIZATION)
        }
        assert sorted(coordinator.read) == [
            (Role.AUDITOR, "", number - 1), (Role.ORGANIZATION, NODES[0], number - 1),
        ], "and of events what is new"  # fmt: skip
        assert rendered == ["run_live.html"] * 2
    signed_out(console, listeners)


def test_a_step_makes_a_tick_of_all_that_waits():
    async def said(*steps):
        watcher = live.Watcher(asyncio.get_running_loop(), None)
        for step in steps:
            watcher.tell(RUN_ID, step=step)
        first = await anext(watcher.ticks())
        await asyncio.sleep(2 * live.SETTLED_S)
        return first, watcher._ticks.empty()

    assert asyncio.run(said(False, False)) == ("tick", True)
    assert asyncio.run(said(False, True, False)) == ("step", True)


def test_what_was_missed_while_the_stream_was_broken_is_looked_at(console):
    listener = Listener(console, cookie_of(console, Role.AUDITOR))
    until(lambda: console.live.watchers == 1)
    console.live._forget()
    until(lambda: listener.ticks)
    signed_out(console, [listener])


def test_a_runs_events_are_read_on_from_the_last_one_and_once_for_all_who_look():
    class Slow(Happening):
        def events(self, request, acting):
            self.read.append((acting.role, acting.organization, request.after))
            time.sleep(0.2)
            yield pb.Event(kind="alive", alive=pb.Alive())
            if self.silent:
                raise TransportError("it went away")
            mine = (one for one in self.happened if acting.role is not Role.ORGANIZATION or one.number % 2)
            yield from (one for one in mine if one.number > request.after)

    def bring(*numbers):
        coordinator.happened += [pb.Event(number=one, run_stopped=pb.RunStopped(round=1)) for one in numbers]

    def numbers(acting, last_event):
        return [one.number for one in told.events(pb.RunLine(run_id=RUN_ID, last_event=last_event), acting)]

    coordinator, seen = Slow(), []
    told, anna = Happened(Reader(coordinator)), Acting("anna", Role.OPERATOR)
    bring(1, 2)
    threads = [threading.Thread(target=lambda: seen.append(numbers(anna, 2))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [[1, 2]] * 20 and len(coordinator.read) == 1
    organization = Acting("x", Role.ORGANIZATION, "bank-b")
    assert numbers(organization, 2) == [1] and numbers(organization, 2) == [1], "the second one is none of its business"
    coordinator.silent = True
    bring(3, 4)
    assert numbers(anna, 4) == [1, 2], "what is known stands"
    coordinator.silent = False
    assert numbers(anna, 4) == [1, 2, 3, 4] and numbers(organization, 4) == [1, 3]
    assert [one[2] for one in coordinator.read] == [0, 0, 2, 2, 2, 2] and coordinator.read[1][1] == "bank-b"
    told.forget()
    assert numbers(anna, 4) == [1, 2, 3, 4]
