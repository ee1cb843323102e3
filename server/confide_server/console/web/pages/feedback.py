"""Which of two answers is better, blind: the same pairs, order and files as `confide rlhf annotate` has.

The candidates lie in the console's folder, feedback/candidates.jsonl, and each annotator's judgements beside them.
"""

import re
import threading
from pathlib import Path

from confide.errors import DataError, IdentityError
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from confide_server.console.accounts.people import Person
from confide_server.console.agreement import agreement, alpha
from confide_server.console.roles import Role
from confide_server.console.web.forms import form_of, visitor_of
from confide_server.console.web.looking import console_of
from confide_server.rlhf.annotation.annotating import KEYS, Session, Task
from confide_server.rlhf.annotation.preferences import Candidate, Comparison, check_candidates, read_lines, standing
from confide_server.rlhf.annotation.snapshots import decide

router = APIRouter()
FILE = "candidates.jsonl"


def annotator(person: Person) -> str:
    """A name that ratings may carry, of this account and no other."""
    plain = re.sub(r"[^a-z0-9._-]", "-", person.name.lower())
    return f"{plain[:50]}-{person.id[:6]}"


class Feedback:
    """Everybody's sitting over the folder's candidates. Used from several threads: one judges at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._sittings: dict[str, Session] = {}
        self._stamp = 0

    def sitting(self, person: Person) -> Session | None:
        """The person's, None where there is nothing to compare. Raises DataError for a damaged file."""
        path, name = self._folder / FILE, annotator(person)
        if not path.exists():
            return None
        with self._lock:
            stamp = path.stat().st_mtime_ns
            if stamp != self._stamp:
                self._sittings.clear()
                self._stamp = stamp
            if name not in self._sittings:
                candidates = read_lines(path, Candidate)
                check_candidates(candidates)
                self._sittings[name] = Session(candidates, name, self._folder / f"ratings-{name}.jsonl")
            return self._sittings[name]

    def judge(self, person: Person, first: str, second: str, key: str) -> None:
        """Of the pair that was shown, in the order in which it was. Raises DataError."""
        session = self.sitting(person)
        if session is None or key not in KEYS:
            raise DataError(f"a judgement is one of {', '.join(KEYS)}; got {key[:20]!r}")
        with self._lock:
            task = session.next()
            if task is None or (task.first.id, task.second.id) != (first, second):
                raise DataError("another pair is shown by now, perhaps in a second window; look again")
            session.judge(task, KEYS[key])

    def undo(self, person: Person) -> bool:
        """Take the last judgement back; whether there was one."""
        session = self.sitting(person)
        if session is None:
            return False
        with self._lock:
            return session.undo()

    def made(self) -> list[Comparison]:
        """What everybody's judgements say as they stand. Raises DataError for a damaged file."""
        with self._lock:
            return [
                one
                for path in sorted(self._folder.glob("ratings-*.jsonl"))
                for one in standing(read_lines(path, Comparison))
            ]


def _page(request: Request, wrong: str = "") -> Response:
    console, person = console_of(request), visitor_of(request).person
    made: list[Comparison] = []
    try:
        session = console.feedback.sitting(person)
        if session is not None and person.role is Role.ADMINISTRATOR:
            made = console.feedback.made()
    except DataError as error:
        session, wrong = None, str(error)
    task: Task | None = session.next() if session is not None else None
    return console.frame.page(
        request,
        "feedback.html",
        status_code=403 if wrong else 200,
        session=session,
        task=task,
        keys=KEYS,
        annotators=agreement(made, total=session.total) if session is not None else [],
        alpha=alpha(made) if made else None,
        left_open=len(decide(made, "majority")[1]),
        wrong=wrong,
    )


@router.get("/feedback", name="feedback")
def feedback(request: Request) -> Response:
    return _page(request)


@router.post("/feedback", name="feedback_judge")
def feedback_judge(request: Request) -> Response:
    form, person = form_of(request), visitor_of(request).person
    try:
        console_of(request).feedback.judge(
            person, form.get("first", ""), form.get("second", ""), form.get("choice", "")
        )
    except (DataError, IdentityError) as error:
        return _page(request, str(error))
    return RedirectResponse("/feedback", 303)


@router.post("/feedback/undo", name="feedback_undo")
def feedback_undo(request: Request) -> Response:
    console_of(request).feedback.undo(visitor_of(request).person)
    return RedirectResponse("/feedback", 303)
