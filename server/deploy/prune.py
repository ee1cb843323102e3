"""Print which installed packages a requirement does not need, one a line, pip last: for `pip uninstall --requirement`.

The lock holds every extra, developers' tools included. An image installs it whole, so that pip checks every hash, and
then lets go of what its own extras do not need. What is needed is read from the packages' metadata, markers evaluated
by the Python that runs this.

    python prune.py 'confide[postgres,s3]' > surplus.txt
"""

import sys
from collections.abc import Mapping
from importlib.metadata import Distribution, distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def needed(wanted: str, installed: Mapping[str, Distribution]) -> set[str]:
    """Canonical names of what `wanted` needs, itself included. Raises KeyError for a package that is not there."""
    known: dict[str, set[str]] = {}
    waiting = [Requirement(wanted)]
    while waiting:
        asked = waiting.pop()
        name, extras = canonicalize_name(asked.name), set(asked.extras)
        if name in known and extras <= known[name]:
            continue
        known[name] = known.get(name, set()) | extras
        for line in installed[name].requires or []:
            below = Requirement(line)
            marker = below.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in known[name] | {""}):
                waiting.append(below)
    return set(known)


def unknown_extras(wanted: str, installed: Mapping[str, Distribution]) -> set[str]:
    """Extras that the wanted package does not offer."""
    asked = Requirement(wanted)
    offered = installed[canonicalize_name(asked.name)].metadata.get_all("Provides-Extra") or []
    return set(asked.extras) - set(offered)


def main() -> None:
    """Print the surplus. Ends with status 1 when something that is needed, or an extra, is not there."""
    wanted = sys.argv[1]
    installed = {str(canonicalize_name(each.metadata["Name"])): each for each in distributions()}
    try:
        unknown = unknown_extras(wanted, installed)
        kept = needed(wanted, installed)
    except KeyError as error:
        sys.exit(f"error: {wanted} needs {error}, which is not installed; install the whole lock first")
    if unknown:
        sys.exit(f"error: {wanted} names extras that do not exist: {', '.join(sorted(unknown))}; see pyproject.toml")
    surplus = sorted(set(installed) - kept, key=lambda name: (name == "pip", name))
    print("\n".join(surplus))


if __name__ == "__main__":
    main()
