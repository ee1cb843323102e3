"""A run's specification: a starting point, checked as one types, and the command with which its administrator signs it.

The signing key never comes near the console: what it gives is text.
"""

from confide.errors import ConfideError
from confide.planning.run_plan import render
from confide.runs.specification import parse_toml
from confide.runs.starting_points import STARTING_POINTS, write
from fastapi import APIRouter, Request
from starlette.responses import Response

from confide_server.console.web.forms import form_of
from confide_server.console.web.looking import console_of

router = APIRouter()
MOST_CHARS = 100_000
NO_MODEL = "0" * 64


def _checked(toml: str, nodes: str) -> dict[str, object]:
    """What is wrong with it, or what it would do."""
    count = int(nodes) if nodes.isdigit() and 1 <= int(nodes) <= 10_000 else 3
    try:
        if len(toml) > MOST_CHARS:
            raise ValueError(f"a specification has at most {MOST_CHARS:,} characters; this has {len(toml):,}")
        found = parse_toml(toml, "the specification")
        words = render(found, nodes=count)
    except (ConfideError, ValueError) as error:
        return {"problem": str(error), "plan": "", "found": None, "nodes": count}
    return {"problem": "", "plan": words, "found": found, "nodes": count, "no_model": found.model.sha256 == NO_MODEL}


@router.get("/specification", name="specification")
def specification(request: Request, recipe: str = "fine-tune", data: str = "notes", model: str = NO_MODEL) -> Response:
    recipe = recipe if recipe in STARTING_POINTS else "fine-tune"
    try:
        toml, wrong = write(recipe, sha256=model, data=data), ""
    except ConfideError as error:
        toml, wrong = write(recipe, sha256=NO_MODEL, data="notes"), str(error)
    return console_of(request).frame.page(
        request,
        "specification.html",
        toml=toml,
        wrong=wrong,
        recipes={name: about for name, (about, _) in STARTING_POINTS.items()},
        recipe=recipe,
        data=data,
        model=model,
        **_checked(toml, "3"),
    )


@router.post("/specification/check", name="specification_check")
def specification_check(request: Request) -> Response:
    form = form_of(request)
    toml = form.get("toml", "").replace("\r\n", "\n")
    return console_of(request).frame.page(
        request, "specification_check.html", toml=toml, **_checked(toml, form.get("nodes", "3"))
    )
