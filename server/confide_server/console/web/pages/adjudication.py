"""Pairs on which annotators do not agree, decided by somebody who judged none of them: as blind as they were.

The files are those of `confide rlhf adjudicate`: adjudicated-NAME.jsonl beside the candidates, which
`confide rlhf snapshot --adjudicated` takes. Every decision is an act in the console's own log.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from confide.errors import DataError
from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from confide_server.console.accounts.people import Person
from confide_server.console.web.forms import form_of, visitor_of
from confide_server.console.web.looking import console_of
from confide_server.console.web.pages.feedback import FILE, annotator
from confide_server.rlhf.annotation.annotating import KEYS, Session, Task, pair_of
from confide_server.rlhf.annotation.preferences import Candidate, Comparison, check_candidates, read_lines, standing
from confide_server.rlhf.annotation.snapshots import decide

router = APIRouter()
MOST_LISTED = 200


@dataclass(frozen=True)
class Disagreement:
    """A pair that was left open. What was said of it is not shown: who decides is as blind as the annotators."""

    prompt: str
    judges: int
    decided: bool


class Adjudication:
    """Sittings over what is left open. Read anew at each look, as annotators go on. Used from several threads."""

    def __init__(self, folder: Path) -> None:
        """folder: Feedback's."""
        self._folder = folder
        self._lock = threading.Lock()
        self._sittings: dict[str, tuple[object, Session]] = {}

    def sitting(self, person: Person) -> tuple[Session, Sequence[Disagreement]] | None:
        """The person's, None where there is nothing to compare.

        Raises DataError for a damaged file, and ADJUDICATOR_JUDGED for one of the annotators.
        """
        path, name = self._folder / FILE, annotator(person)
        if not path.exists():
            return None
        with self._lock:
            return self._sitting(path, name)

    def _sitting(self, path: Path, name: str) -> tuple[Session, Sequence[Disagreement]]:
        check_candidates(known := read_lines(path, Candidate))
        judged = self._made("ratings")
        if name in {one.annotator for one in judged}:
            raise DataError(
                "ADJUDICATOR_JUDGED: you are one of the annotators of these answers; let somebody else decide"
            )
        # What another adjudicator decided is not asked again: a pair has one decision.
        others = {one.pair for one in self._made("adjudicated") if one.annotator != name}
        left = [pair for pair in decide(judged, "majority")[1] if pair not in others]
        asked = (path.stat().st_mtime_ns, left)
        if name not in self._sittings or self._sittings[name][0] != asked:
            file = self._folder / f"adjudicated-{name}.jsonl"
            self._sittings[name] = asked, Session(known, name, file, only=left)
        session = self._sittings[name][1]
        judges: dict[tuple[str, str], set[str]] = {}
        for one in judged:
            judges.setdefault(one.pair, set()).add(one.annotator)
        decided = {one.pair for one in self._made("adjudicated")}
        prompts = {one.id: one.prompt for one in known}
        listed = [Disagreement(prompts[pair[0]], len(judges[pair]), pair in decided) for pair in left[:MOST_LISTED]]
        return session, listed

    def _made(self, kind: str) -> list[Comparison]:
        paths = sorted(self._folder.glob(f"{kind}-*.jsonl"))
        return [one for path in paths for one in standing(read_lines(path, Comparison))]

    def decide(self, person: Person, first: str, second: str, key: str) -> Task:
        """Of the pair that was shown, in the order in which it was. Raises DataError."""
        if key not in KEYS:
            raise DataError(f"a decision is one of {', '.join(KEYS)}; got {key[:20]!r}")
        path, name = self._folder / FILE, annotator(person)
        with self._lock:
            session = self._sitting(path, name)[0] if path.exists() else None
            task = session.next() if session is not None else None
            if session is None or task is None or (task.first.id, task.second.id) != (first, second):
                raise DataError("another pair is shown by now, perhaps decided by somebody else; look again")
            session.judge(task, KEYS[key])
            return task

    def undo(self, person: Person) -> bool:
        """Take the last decision back; whether there was one. Raises DataError."""
        path = self._folder / FILE
        with self._lock:
            return path.exists() and self._sitting(path, annotator(person))[0].undo()


def _page(request: Request, wrong: str = "") -> Response:
    console, person = console_of(request), visitor_of(request).person
    session: Session | None = None
    listed: Sequence[Disagreement] = ()
    try:
        found = console.adjudication.sitting(person)
        if found is not None:
            session, listed = found
    except DataError as error:
        wrong = wrong or str(error)
    return console.frame.page(
        request,
        "adjudication.html",
        status_code=403 if wrong else 200,
        session=session,
        task=session.next() if session is not None else None,
        keys=KEYS,
        listed=listed,
        wrong=wrong,
    )


@router.get("/adjudication", name="adjudication")
def adjudication(request: Request) -> Response:
    return _page(request)


@router.post("/adjudication", name="adjudication_decide")
def adjudication_decide(request: Request) -> Response:
    console, form, person = console_of(request), form_of(request), visitor_of(request).person
    try:
        task = console.adjudication.decide(
            person, form.get("first", ""), form.get("second", ""), form.get("choice", "")
        )
    except DataError as error:
        return _page(request, str(error))
    console.people.note(person.name, "adjudicated", " ".join(one[:16] for one in pair_of(task)))
    return RedirectResponse("/adjudication", 303)


@router.post("/adjudication/undo", name="adjudication_undo")
def adjudication_undo(request: Request) -> Response:
    console, person = console_of(request), visitor_of(request).person
    try:
        if console.adjudication.undo(person):
            console.people.note(person.name, "adjudication_undone")
    except DataError as error:
        return _page(request, str(error))
    return RedirectResponse("/adjudication", 303)
