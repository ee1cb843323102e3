"""Keys, rates, budgets, aliases and the records of who asked, in the database."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from confide.errors import StateError
from confide_server.serving import rates
from confide_server.serving.access import Asked, Caller, Spent
from confide_server.serving.failures import Refused
from confide_server.serving.keyed_access import GUESSES_PER_MINUTE, KeyedAccess
from confide_server.serving.process import open_database
from confide_server.serving.rates import Rate, Rates
from confide_server.state import serving_aliases, serving_requests
from confide_server.state.database import Database
from confide_server.state.serving_aliases import Standing
from confide_server.state.serving_keys import KeyTerms, add_key, list_keys, revoke_key

from tests.databases import database_url, postgres  # noqa: F401 - fixtures

ASKED = Asked("/v1/completions", "m", "b" * 64, "", 100)


@pytest.fixture
def database(tmp_path: Path, database_url: str) -> Iterator[Database]:  # noqa: F811
    """On each kind of database that a server runs on."""
    opened = open_database(tmp_path / "serving", database_url)
    yield opened
    opened.close()


@pytest.fixture
def access(database: Database) -> Iterator[KeyedAccess]:
    access = KeyedAccess(database, "here")
    yield access
    access.close()


async def caller(access: KeyedAccess, key: str, address: str = "127.0.0.1") -> Caller:
    return await access.caller(f"Bearer {key}", address)


def spent(database: Database) -> int:
    (row,) = list_keys(database)
    return row.spent_tokens


def test_only_a_hash_of_a_key_is_kept(tmp_path: Path) -> None:
    database = open_database(tmp_path / "serving")
    key = add_key(database, KeyTerms(name="alice", models=("m",), collections=("faq",)))
    files = b"".join(path.read_bytes() for path in (tmp_path / "serving").iterdir() if path.is_file())
    assert key.startswith("confide-") and key.encode() not in files and key[-43:].encode() not in files
    (row,) = list_keys(database)
    assert row.name == "alice" and row.digest not in key.encode()
    assert (tmp_path / "serving" / "serving.db").stat().st_mode & 0o777 == 0o600
    with pytest.raises(StateError, match="a key's name"):
        add_key(database, KeyTerms(name="\x1b[2J"))
    database.close()


def test_keys_are_scoped_and_end(database: Database, access: KeyedAccess) -> None:
    key = add_key(database, KeyTerms(name="alice", models=("m",), collections=("faq",)))
    other = add_key(database, KeyTerms(name="bob", days=0.001))

    async def ask() -> None:
        who = await caller(access, key)
        assert who.may_use("m") and not who.may_use("n") and who.may_read("faq") and not who.may_read("law")
        assert not who.metrics
        for wrong in (None, "Basic x", "Bearer ", f"Bearer {key}x", f"Bearer {key[:-1]}", "Bearer \ud800"):
            with pytest.raises(Refused) as refused:
                await access.caller(wrong, "10.0.0.1")
            assert refused.value.status == 401
        revoke_key(database, key.split("-")[1])
        with pytest.raises(Refused, match="was revoked") as refused:
            await access.begin(who, ASKED)
        assert refused.value.status == 401

    asyncio.run(ask())
    from confide_server.state.serving_keys import KeyRefused, key_of

    with pytest.raises(KeyRefused, match="has expired"):
        key_of(database, other, now=time.time() + 100)


def test_who_guesses_waits_and_others_do_not(
    database: Database, access: KeyedAccess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "time", SimpleNamespace(monotonic=lambda: 100.0))  # nothing is saved up meanwhile
    key = add_key(database, KeyTerms(name="alice"))

    async def guess() -> list[int]:
        found = []
        for _ in range(GUESSES_PER_MINUTE + 2):
            with pytest.raises(Refused) as refused:
                await caller(access, "confide-00000000-" + "x" * 43, "2001:db8::1")
            found.append(refused.value.status)
        with pytest.raises(Refused) as refused:  # the same machine under another of its addresses
            await caller(access, "confide-00000000-" + "x" * 43, "2001:db8::2")
        assert refused.value.status == 429 and (refused.value.retry_after_s or 0) > 0
        for address in ("2001:db8::1", "2001:db8:1::1"):  # a good key is not kept out by who else is behind its address
            assert (await caller(access, key, address)).name == "alice"
        return found

    assert asyncio.run(guess()) == [401] * GUESSES_PER_MINUTE + [429] * 2


def test_a_budget_holds_for_requests_side_by_side(database: Database, access: KeyedAccess) -> None:
    """Each reserves what it may take; what it did not take comes back."""
    key = add_key(database, KeyTerms(name="alice", budget_tokens=250))

    async def ask() -> None:
        who = await caller(access, key)
        found = await asyncio.gather(*(access.begin(who, ASKED) for _ in range(4)), return_exceptions=True)
        charges: list[Any] = [one for one in found if not isinstance(one, BaseException)]
        refused = [one for one in found if isinstance(one, Refused)]
        assert len(charges) == 2 and [one.kind for one in refused] == ["insufficient_quota"] * 2
        charges[0].settle(Spent(10, 20, "done"))
        charges[0].settle(Spent(99, 99, "done"))
        again = await access.begin(who, ASKED)
        again.settle(Spent(10, 0, "cancelled"))
        charges[1].settle(Spent(50, 50, "failed"))

    asyncio.run(ask())
    access.close()
    assert spent(database) == 30 + 10 + 100
    outcomes = sorted(
        (row.outcome, row.prompt_tokens, row.completion_tokens) for row in serving_requests.newest(database)
    )
    assert outcomes == [("cancelled", 10, 0), ("done", 10, 20), ("failed", 50, 50)]


def test_a_killed_process_forgets_no_spending(database: Database) -> None:
    key = add_key(database, KeyTerms(name="alice", budget_tokens=150))
    first = KeyedAccess(database, "here")

    async def begin(access: KeyedAccess) -> None:
        await access.begin(await caller(access, key), ASKED)

    asyncio.run(begin(first))  # and nothing settles it
    elsewhere = KeyedAccess(database, "elsewhere")
    assert elsewhere.interrupted == 0, "another server's requests are not its own"
    second = KeyedAccess(database, "here")
    assert second.interrupted == 1 and spent(database) == 100
    with pytest.raises(Refused, match="50 are left"):
        asyncio.run(begin(second))
    for access in (first, elsewhere, second):
        access.close()


def test_a_budget_begins_anew_with_its_period(database: Database) -> None:
    from confide_server.state.serving_keys import KeyRefused, reserve, settle

    key = add_key(database, KeyTerms(name="alice", budget_tokens=100, budget_days=1))
    key_id, now = key.split("-")[1], time.time()
    with database.transaction() as session:
        reserve(session, key_id, 80, now)
        with pytest.raises(KeyRefused) as refused:
            reserve(session, key_id, 30, now)
        assert 86000 < (refused.value.retry_after_s or 0) <= 86401
        reserve(session, key_id, 30, now + 86500)
        settle(session, key_id, 80, 10, now)  # of the period before: nothing comes back
    assert spent(database) == 30


def test_rates_refuse_with_when_to_come_back(database: Database, access: KeyedAccess) -> None:
    many = add_key(database, KeyTerms(name="requests", requests_per_minute=2))
    big = add_key(database, KeyTerms(name="tokens", tokens_per_minute=150))
    narrow = add_key(database, KeyTerms(name="narrow", at_once=1))

    async def ask() -> None:
        who = await caller(access, many)
        for _ in range(2):
            access.arrived(who)
        with pytest.raises(Refused, match="2 requests a minute") as refused:
            access.arrived(who)
        assert refused.value.status == 429 and (refused.value.retry_after_s or 0) > 0
        for key, good, word in ((big, 1, "tokens a minute"), (narrow, 1, "under way")):
            who = await caller(access, key)
            charges = [await access.begin(who, ASKED) for _ in range(good)]
            with pytest.raises(Refused, match=word) as refused:
                await access.begin(who, ASKED)
            assert refused.value.status == 429 and (refused.value.retry_after_s or 0) > 0
            for charge in charges:
                charge.settle(Spent(1, 1, "done"))
        (await access.begin(await caller(access, big), ASKED)).settle(Spent(1, 1, "done"))
        (await access.begin(await caller(access, narrow), ASKED)).settle(Spent(1, 1, "done"))

    asyncio.run(ask())


def test_who_hangs_up_while_it_is_written_is_settled(database: Database, access: KeyedAccess) -> None:
    key = add_key(database, KeyTerms(name="alice", at_once=1))

    async def leave() -> None:
        who = await caller(access, key)
        task = asyncio.create_task(access.begin(who, ASKED))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        (await access.begin(who, ASKED)).settle(Spent(0, 0, "done"))

    asyncio.run(leave())
    until = time.monotonic() + 60
    while any(row.outcome == "open" for row in serving_requests.newest(database)) and time.monotonic() < until:
        time.sleep(0.02)
    access.close()
    assert spent(database) == 0
    assert {row.outcome for row in serving_requests.newest(database)} <= {"done", "cancelled"}


def test_an_end_that_cannot_be_written_is_said(
    database: Database, access: KeyedAccess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As when the disk is full: nobody waits for it, and the key stays charged."""
    key = add_key(database, KeyTerms(name="alice"))
    monkeypatch.setattr(serving_requests, "end", lambda *_, **__: 1 / 0)

    async def ask() -> None:
        (await access.begin(await caller(access, key), ASKED)).settle(Spent(1, 1, "done"))

    asyncio.run(ask())
    access.close()
    assert spent(database) == 100 and "stays charged with 100 tokens" in caplog.text and key not in caplog.text


def test_texts_with_zero_bytes_are_kept_on_every_database(database: Database) -> None:
    """PostgreSQL holds none: such a question was an error of the server, and such an answer was never settled."""
    access = KeyedAccess(database, "here", keeps_text=True)
    key = add_key(database, KeyTerms(name="alice"))

    async def ask() -> None:
        asked = replace(ASKED, text="a\0b")
        (await access.begin(await caller(access, key), asked)).settle(Spent(1, 2, "done", "c\0d"))

    asyncio.run(ask())
    access.close()
    (row,) = serving_requests.newest(database)
    assert (row.asked_text, row.answer_text, row.outcome) == ("a\ufffdb", "c\ufffdd", "done") and spent(database) == 3


def test_rates_save_up_a_minute_and_owe_more() -> None:
    rate = Rate(60, now=0.0)
    rate.take(600, now=0.0)
    assert rate.wait_s(1, now=0.0) == pytest.approx(541)
    assert rate.wait_s(10**6, now=1000.0) == 0.0
    rates = Rates(1, most=2)
    for name in "abc":
        rates.of(name).take(1)
    assert rates.of("c").wait_s(1) > 0 == rates.of("a").wait_s(1), "the oldest is forgotten"


def test_aliases_keep_their_history(database: Database) -> None:
    old, new = (Standing("support", sha * 64, "b" * 64) for sha in "12")
    serving_aliases.point(database, old)
    serving_aliases.point(database, new)
    assert serving_aliases.current(database) == (2, [new])
    assert serving_aliases.roll_back(database, "support") == old
    assert serving_aliases.current(database) == (3, [old])
    serving_aliases.remove(database, "support")
    assert serving_aliases.current(database) == (4, [])
    with pytest.raises(StateError, match="there is no alias"):
        serving_aliases.roll_back(database, "support")
    with pytest.raises(StateError, match="an alias is"):
        serving_aliases.point(database, Standing("../x y", "1" * 64, "b" * 64))
    assert [row.removed for row in serving_aliases.history(database, "support")] == [True, False, False, False]
    assert database.verify_audit() == 4


def test_old_requests_are_forgotten_and_their_cost_is_not(database: Database, access: KeyedAccess) -> None:
    key = add_key(database, KeyTerms(name="alice"))

    async def ask() -> None:
        (await access.begin(await caller(access, key), ASKED)).settle(Spent(7, 3, "done"))

    asyncio.run(ask())
    access.close()
    assert serving_requests.forget_before(database, 1) == 0
    assert serving_requests.forget_before(database, 0) == 1
    assert not serving_requests.newest(database) and spent(database) == 10
