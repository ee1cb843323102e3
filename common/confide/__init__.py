"""Confide's shared core: what client and server both hold. It imports neither side.

Each package imports only from those below it (docs/architecture.md; `make check` holds it):

    planning                    what a run will do, need and take
    sealing, transport          how updates and messages travel
    privacy                     mechanisms, accounting, ledger
    methods                     training objectives
    models, tokenizer           what is trained
    identity, codec             who is who; updates as integers
    runs                        the run specification, and what follows from it alone
    journal, documents, web     append-only journals; stored documents; what the browser pages share
    files, running, canonical, text, proto, errors

Importing it turns the telemetry of the libraries underneath off, before they are imported.
"""

import os

__version__ = "0.1.0"

for _name, _value in {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "GRPC_VERBOSITY": "NONE",  # what fails is raised, by name
    # Threads that wait for each other give way soon. Spinning, beside other work, takes most of the time of all.
    "GOMP_SPINCOUNT": "3000",
}.items():
    os.environ.setdefault(_name, _value)
