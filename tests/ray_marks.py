"""Marks of a test file that starts Ray."""

import pytest

RAY = [
    # One process runs all of them: a small machine has no room for two clusters side by side.
    pytest.mark.xdist_group("ray"),
    # Ray leaves sockets and files to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
