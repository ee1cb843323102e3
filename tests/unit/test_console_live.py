"""Ticks to open pages, over real connections: soon, to whom they concern, and no longer than the session."""

import queue
import threading
import time

import httpx
import pytest
from confide.proto import admin_pb2 as pb
from confide.web.serving import listening, server
from confide_server.console.federation import live
from confide_server.console.roles import Role
from confide_server.console.settings import Settings
from confide_server.console.web.app import Console

from tests.console_world import NODES, RUN_ID, Browser, MemoryCoordinator, welcome


class Happening(MemoryCoordinator):
    """Its stream brings what a test puts into the queue."""

    def events(self, request, acting):
        self.queue = getattr(self, "queue", None) or queue.Queue()
        yield pb.Event(clock=time.time(), kind="alive", alive=pb.Alive())
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
        made = Console(tmp_path, Settings(), Happening(), issuer="x", port=port)
        web = server(made.app())
        thread = threading.Thread(target=lambda: web.run(sockets=[listener]), daemon=True)
        thread.start()
        while not web.started:
            time.sleep(0.01)
        yield made
        web.should_exit = True
        thread.join(5)
        made.close()


def cookie_of(console, role, organization=""):
    client = Browser(console.app(), base_url=console.address, follow_redirects=True)
    welcome(client, console.people.invite(role, organization), f"{role.value}-{organization or 'x'}")
    return {"cookie": f"confide-console={client.cookies['confide-console']}"}


class Listener(threading.Thread):
    """One open page."""

    def __init__(self, console, headers):
        super().__init__(daemon=True)
        self.console, self.headers, self.ticks, self.status, self.ended = console, headers, [], 0, False
        self.start()

    def run(self):
        address = f"{self.console.address}/live"
        with httpx.stream("GET", address, headers=self.headers, timeout=30) as answer:
            self.status = answer.status_code
            for line in answer.iter_lines():
                if line == "event: tick":
                    self.ticks.append(time.monotonic())
        self.ended = True


def until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.01)


def test_every_open_page_hears_soon_and_no_other_does(console):
    headers, mine = cookie_of(console, Role.AUDITOR), cookie_of(console, Role.ORGANIZATION, NODES[0])
    listeners = [Listener(console, headers) for _ in range(20)] + [Listener(console, mine)]
    until(lambda: console.live.watchers == len(listeners))
    happened = time.monotonic()
    console.reader._coordinator.queue.put(pb.Event(number=1, run_id=RUN_ID, run_stopped=pb.RunStopped(round=1)))
    until(lambda: all(one.ticks for one in listeners))
    assert max(one.ticks[0] for one in listeners) - happened < 4.0
    console.reader._coordinator.queue.put(pb.Event(number=2, run_id="ff" * 16, run_stopped=pb.RunStopped(round=1)))
    until(lambda: all(len(one.ticks) == 2 for one in listeners[:-1]))
    time.sleep(0.3)
    assert len(listeners[-1].ticks) == 1, "a run of others"
    for person in console.people.all():
        console.sessions.end_all(person)
    until(lambda: all(one.ended for one in listeners))


def test_whoever_may_not_watch_hears_nothing(console):
    for headers in ({}, cookie_of(console, Role.ANNOTATOR)):
        listener = Listener(console, headers)
        until(lambda listener=listener: listener.ended)
        assert listener.status in {303, 403} and not listener.ticks
