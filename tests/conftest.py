"""What all tests share: one thread a process, no hub, reproducible property tests."""

import os

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import confide  # noqa: E402, F401 - switches telemetry off before anything else is imported
from hypothesis import settings  # noqa: E402

settings.register_profile("confide", derandomize=True, deadline=None, max_examples=60)
settings.load_profile("confide")
