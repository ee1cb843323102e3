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


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In parallel a file stays in one process, so that what its tests share is made once.

    Files that start Ray are marked as one group: a small machine has no room for two clusters side by side.
    """
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(f"{item.path.parent.name}-{item.path.stem}"))
