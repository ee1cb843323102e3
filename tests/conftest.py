"""What all tests share: one thread a process, no hub, reproducible property tests."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import confide  # noqa: E402, F401 - switches telemetry off before anything else is imported
import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

settings.register_profile("confide", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("confide")


def pytest_configure(config: pytest.Config) -> None:
    """pytest 9.2 does not see the group that xdist 3.8 adds to a test's name: each process makes each file's world."""
    if config.getoption("dist", "no") == "loadgroup" and pytest.version_tuple >= (9, 2):
        raise pytest.UsageError("pytest 9.2 ignores the groups of tests; install what requirements/lock.txt pins")


# Files by how long they take on a slow machine; the rest comes after them, as it is collected.
LONGEST_FIRST = (
    "test_console_browser",
    "test_simulate",
    "test_method_federation",
    "test_private_methods",
    "test_sealed_kills",
    "test_federation",
    "test_recipes",
    "test_what_leaves",
    "test_fleet_restart",
    "test_fleet_run",
    "test_training_sharded",
    "test_agent_fleet",
    "test_quickstart",
)


def _place(item: pytest.Item) -> int:
    return LONGEST_FIRST.index(item.path.stem) if item.path.stem in LONGEST_FIRST else len(LONGEST_FIRST)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In parallel a file stays in one process, so that what its tests share is made once; the longest begin first.

    Files that start Ray are marked as one group: a small machine has no room for two clusters side by side.
    """
    items.sort(key=_place)
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(f"{item.path.parent.name}-{item.path.stem}"))
