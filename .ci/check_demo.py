"""Fail unless the demo of .ci/run did what it is for: every organization in every round, sealed, and a better model.

python .ci/check_demo.py build/demo.json
"""

import json
import math
import sys
from pathlib import Path
from typing import Any


def faults(result: dict[str, Any], rounds: int = 1, nodes: int = 4) -> list[str]:
    """What is not as it must be in the demo's figures; empty if all is well."""
    found = []
    if result["sealing"] != "sealed":
        found.append(f"sealing was {result['sealing']!r}, not 'sealed'")
    if [one["round"] for one in result["rounds"]] != list(range(1, rounds + 1)):
        found.append(f"rounds committed: {[one['round'] for one in result['rounds']]}, not 1 to {rounds}")
    for one in result["rounds"]:
        if len(one["contributors"]) != nodes or one["dropped"]:
            found.append(f"round {one['round']}: {one['contributors']} contributed, dropped: {one['dropped']}")
    base, federated = result["nll"]["base"], result["nll"]["federated"]
    if not (math.isfinite(federated) and federated < base):
        found.append(f"the federated model scores {federated} nats a token, the untrained one {base}: no better")
    if not Path(result["adapter"], "adapter_model.safetensors").is_file():
        found.append(f"no adapter in {result['adapter']}")
    return found


def main() -> None:
    """Check the document named on the command line."""
    result = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    found = faults(result)
    if found:
        sys.exit("error: the demo ran, but " + "; ".join(found))
    nll = result["nll"]
    print(
        f"demo: {nll['base']:.3f} -> {nll['federated']:.3f} nats a token in {result['seconds']:.0f} s, "
        f"{result['peak_memory_mib']} MiB"
    )


if __name__ == "__main__":
    main()
