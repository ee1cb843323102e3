"""Accounts of the console: links, passwords, codes, sessions, tokens."""

import stat

import pyotp
import pytest
from confide.errors import IdentityError, StateError
from confide_server.console.accounts import codes, passwords
from confide_server.console.accounts.limits import Limits
from confide_server.console.accounts.people import People
from confide_server.console.accounts.sessions import CONFIRMED_S, INCOMPLETE_S, Sessions, check_csrf
from confide_server.console.accounts.store import AccountStore
from confide_server.console.accounts.tokens import Tokens
from confide_server.console.roles import Role

GOOD = "four unrelated words here"
SEED = "K5XXEZDTORUGC5DBOJSU433UMRXW4ZI7"
"""Of everybody's codes: under a seed drawn anew, 000000 is a right code once in 300,000 runs."""


class Clock:
    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(tmp_path):
    made = AccountStore(tmp_path / "console.db")
    yield made
    made.close()


@pytest.fixture
def people(store, clock):
    return People(store, Limits(store, clock), clock)


@pytest.fixture
def anna(people, clock):
    seed = SEED
    link = people.invite(Role.OPERATOR)
    made = people.accept(link, "anna", GOOD, seed, pyotp.TOTP(seed).at(clock.now))
    return made, seed


def test_the_file_is_its_owners_alone_and_of_this_release(tmp_path):
    path = tmp_path / "console.db"
    AccountStore(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    newer = AccountStore(path)
    newer.run("PRAGMA user_version=99")
    newer.close()
    with pytest.raises(StateError, match="newer release"):
        AccountStore(path)
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StateError, match="cannot be used"):
        AccountStore(path)


def test_a_link_opens_once_and_in_time(people, clock):
    seed = SEED
    link = people.invite(Role.AUDITOR)
    people.accept(link, "anna", GOOD, seed, pyotp.TOTP(seed).at(clock.now))
    with pytest.raises(IdentityError, match="was used"):
        people.accept(link, "berta", GOOD, seed, pyotp.TOTP(seed).at(clock.now))
    late = people.invite(Role.AUDITOR)
    clock.now += 901
    with pytest.raises(IdentityError, match="older than 15 minutes"):
        people.link(late)
    with pytest.raises(IdentityError, match="never was one"):
        people.link("x" * 43)


def test_a_wrong_code_does_not_use_the_link_up(people, clock):
    seed, link = SEED, people.invite(Role.AUDITOR)
    with pytest.raises(IdentityError, match="code is not right"):
        people.accept(link, "anna", GOOD, seed, "000000")
    assert people.accept(link, "anna", GOOD, seed, pyotp.TOTP(seed).at(clock.now)).role is Role.AUDITOR


def test_an_organizations_person_belongs_to_one(people):
    with pytest.raises(IdentityError, match="organization's name"):
        people.invite(Role.ORGANIZATION)
    with pytest.raises(IdentityError, match="nobody else has one"):
        people.invite(Role.AUDITOR, "hospital-a")


@pytest.mark.parametrize("bad", ["short", "password1234", "aaaaaaaaaaaaaaaa", "x" * 300, "Administrator!!"])
def test_passwords_that_are_guessed_early_are_refused(bad):
    with pytest.raises(IdentityError):
        passwords.check_strength(bad, "anna")


def test_a_password_is_kept_as_argon2id_and_never_fits_when_there_is_none():
    stored = passwords.hashed(GOOD)
    assert stored.startswith("$argon2id$v=19$m=65536,t=3")
    assert passwords.fits(stored, GOOD) and not passwords.fits(stored, GOOD + "x")
    assert not passwords.fits(None, GOOD) and not passwords.fits("damaged", GOOD)


def test_a_code_is_taken_once_and_only_around_now(people, anna, clock):
    person, seed = anna
    clock.now += 60
    code = pyotp.TOTP(seed).at(clock.now)
    people.check_code(person, code, "here")
    with pytest.raises(IdentityError, match="used already"):
        people.check_code(person, code, "here")
    with pytest.raises(IdentityError):
        people.check_code(person, pyotp.TOTP(seed).at(clock.now + 120), "here")


def test_sessions_idle_end_and_are_replaced(store, people, anna, clock):
    person, _ = anna
    sessions = Sessions(store, people, idle_s=600, absolute_s=3600, clock=clock)
    half = sessions.begin(person, "here", complete=False)
    found = sessions.find(half)
    assert not found.complete and not found.confirmed
    whole = sessions.begin(person, "here", complete=True, instead_of=found)
    assert sessions.find(half) is None and sessions.find(whole).confirmed
    clock.now += CONFIRMED_S + 1
    assert not sessions.find(whole).confirmed
    clock.now += 601
    assert sessions.find(whole) is None, "idle"
    busy = sessions.begin(person, "here", complete=True)
    for _ in range(7):
        clock.now += 500
        sessions.find(busy)
    assert sessions.find(busy) is not None
    clock.now += 200
    assert sessions.find(busy) is None, "absolute"
    waiting = sessions.begin(person, "here", complete=False)
    clock.now += INCOMPLETE_S + 1
    assert sessions.find(waiting) is None


def test_signing_out_everywhere_ends_all(store, people, anna, clock):
    person, _ = anna
    sessions = Sessions(store, people, idle_s=600, absolute_s=3600, clock=clock)
    cookies = [sessions.begin(person, "here", complete=True) for _ in range(3)]
    open_page = sessions.find(cookies[0])
    assert sessions.holds(open_page)
    assert sessions.end_all(person) == 3
    assert not any(sessions.find(cookie) for cookie in cookies) and not sessions.holds(open_page)


def test_a_challenge_is_taken_once(store, people, anna, clock):
    sessions = Sessions(store, people, idle_s=600, absolute_s=3600, clock=clock)
    session = sessions.find(sessions.begin(anna[0], "here", complete=True))
    drawn = sessions.challenge(session)
    assert sessions.take_challenge(session) == drawn
    with pytest.raises(IdentityError):
        sessions.take_challenge(session)
    with pytest.raises(IdentityError):
        check_csrf(session, "x")


def test_tokens_have_scopes_an_end_and_an_owner(store, people, anna, clock):
    person, _ = anna
    tokens = Tokens(store, people, clock)
    made = tokens.make(person, "a script", ["runs"], 1)
    assert tokens.check(made, "runs") == person
    with pytest.raises(IdentityError, match="audit is not among"):
        tokens.check(made, "audit")
    with pytest.raises(IdentityError, match="scopes are"):
        tokens.make(person, "x", ["everything"], 1)
    with pytest.raises(IdentityError, match="1 to 365 days"):
        tokens.make(person, "x", ["runs"], 0)
    clock.now += 86401
    with pytest.raises(IdentityError, match="is over"):
        tokens.check(made, "runs")


def test_the_last_administrator_stays(people, clock):
    seed = SEED
    first = people.accept(people.invite(Role.ADMINISTRATOR), "anna", GOOD, seed, pyotp.TOTP(seed).at(clock.now))
    with pytest.raises(IdentityError, match="last administrator"):
        people.close(first.id)


def test_the_qr_code_is_a_picture_without_style_or_script():
    drawn = str(codes.picture(codes.new_seed(), 'a"<b>', "Confide"))
    assert drawn.startswith("<svg") and "style" not in drawn and "<b>" not in drawn and "script" not in drawn
