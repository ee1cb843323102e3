"""A handler of BaseException sees interrupts and cancelled tasks: it puts back what it holds and raises them again."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
KEPT = {
    "server/confide_server/rlhf/training/trl_adapter.py": "a thread's outcome, raised again by who waits for it",
    "client/confide_client/runs/loading.py": "a thread's outcome, raised again by whoever asks for the trainer",
    "simulations/confide_simulations/chaos/worker.py": "a forked child, which prints it and ends by os._exit",
}
"""Those that keep it: there is no other way for it to be heard of."""


def broad(tree: ast.AST) -> list[ast.ExceptHandler]:
    """Handlers of BaseException, or of everything."""
    handlers = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler)]
    return [one for one in handlers if one.type is None or "BaseException" in ast.unparse(one.type)]


def raises_again(handler: ast.ExceptHandler) -> bool:
    """Whether its last word is a bare `raise`."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def test_every_handler_of_everything_raises_again() -> None:
    swallowed = {
        str(path.relative_to(ROOT))
        for folder in ("common", "client", "server", "simulations")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for handler in broad(ast.parse(path.read_text()))
        if not raises_again(handler)
    }
    assert swallowed == set(KEPT)


def test_one_that_keeps_it_for_itself_is_seen() -> None:
    (kept,) = broad(ast.parse("try: pass\nexcept BaseException as error: told = error"))
    (again,) = broad(ast.parse("try: pass\nexcept:\n  close()\n  raise"))
    assert not raises_again(kept) and raises_again(again)
