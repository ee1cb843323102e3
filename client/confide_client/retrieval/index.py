"""The node's own library: documents of one organization, in its state folder. Nothing of it leaves but by the desk."""

from confide.rag.access import Caller
from confide.rag.library import Library

from confide_client.state import StateFolder

FOLDER = "library"


def own_library(state: StateFolder) -> Library:
    """Below the state folder; made when the first document is added."""
    return Library(state.root / FOLDER)


def own_caller(state: StateFolder) -> Caller:
    """The operator of this organization. Raises IdentityError before the node was admitted."""
    return Caller.operator(state.member().name)
