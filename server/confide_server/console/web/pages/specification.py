"""A run's specification: a starting point, checked as one types, and the command with which its administrator signs it.

The signing key never comes near the console: what it gives is text.
"""

from dataclasses import dataclass

from confide.errors import ConfideError, SpecificationError
from confide.planning.run_plan import render
from confide.runs.specification import Specification, parse_toml
from confide.runs.starting_points import STARTING_POINTS, write
from fastapi import APIRouter, Request
from starlette.responses import Response

from confide_server.console.web.forms import form_of
from confide_server.console.web.looking import console_of, look_of

router = APIRouter()
MOST_CHARS = 100_000
NO_MODEL = "0" * 64


@dataclass(frozen=True)
class Checked:
    """What is wrong with a specification, or what it would do with so many nodes."""

    nodes: int
    problem: str = ""
    plan: str = ""
    found: Specification | None = None

    @property
    def no_model(self) -> bool:
        """Whether the base model is still to be named."""
        return self.found is not None and self.found.model.sha256 == NO_MODEL


def _checked(toml: str, nodes: str) -> Checked:
    count = int(nodes) if nodes.isdigit() and 1 <= int(nodes) <= 10_000 else 3
    try:
        if len(toml) > MOST_CHARS:
            raise SpecificationError(f"a specification has at most {MOST_CHARS:,} characters; this has {len(toml):,}")
        found = parse_toml(toml, "the specification")
        return Checked(count, plan=render(found, nodes=count), found=found)
    except (ConfideError, ValueError) as error:
        return Checked(count, problem=str(error))


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
        models=look_of(request).base_models(),
        checked=_checked(toml, "3"),
    )


@router.post("/specification/check", name="specification_check")
def specification_check(request: Request) -> Response:
    form = form_of(request)
    toml = form.get("toml", "").replace("\r\n", "\n")
    return console_of(request).frame.page(
        request, "specification_check.html", toml=toml, checked=_checked(toml, form.get("nodes", "3"))
    )
