"""Write the software bill of materials of an installed Confide, as CycloneDX 1.6 JSON: `make sbom`.

What the wheel needs with all extras that users install, as it is resolved in the environment given: versions, licences,
who needs whom, and the SHA-256 of every file of a version that requirements/ accepts.

    python tools/sbom.py .venv/lib/python3.11/site-packages dist/confide.cdx.json
"""

import importlib.metadata
import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
FOR_DEVELOPERS = "dev"


def locked_hashes() -> dict[str, list[str]]:
    """SHA-256 of the files of each locked package, by its normalized name."""
    found: dict[str, list[str]] = {}
    for file in ("lock.txt", "cuda.txt"):
        for line in (REQUIREMENTS / file).read_text().replace("\\\n", " ").splitlines():
            if "--hash" in line:
                name = canonicalize_name(line.split("==")[0])
                found[name] = re.findall(r"sha256:([0-9a-f]{64})", line)
    return found


def needs(distribution: Distribution, extras: set[str]) -> Iterator[Requirement]:
    """What a distribution asks for here, with these of its extras."""
    for line in distribution.requires or []:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras or {""}):
            yield requirement


def component(distribution: Distribution, hashes: list[str]) -> Component:
    """One package, with the files that the lock accepts of it."""
    name, version = canonicalize_name(distribution.metadata["Name"]), distribution.version
    found = Component(name=name, version=version, type=ComponentType.LIBRARY, bom_ref=f"{name}=={version}")
    found.purl = PackageURL("pypi", None, name, version)
    licence = distribution.metadata.get("License-Expression") or distribution.metadata.get("License")
    if licence and "\n" not in licence:
        found.licenses.add(LicenseFactory().make_from_string(licence))
    if hashes:
        files = [HashType(alg=HashAlgorithm.SHA_256, content=digest) for digest in sorted(hashes)]
        source = XsUri(f"https://pypi.org/project/{name}/{version}/")
        found.external_references.add(
            ExternalReference(type=ExternalReferenceType.DISTRIBUTION, url=source, hashes=files, comment="any of them")
        )
    return found


def bill(folders: str) -> Bom:
    """Confide and everything below it. Ends the program when a dependency is not installed."""
    installed = {
        canonicalize_name(each.metadata["Name"]): each
        for each in reversed(list(importlib.metadata.distributions(path=folders.split(":"))))
    }
    if "confide" not in installed:
        sys.exit(f"error: confide is not installed in {folders}; run `make setup`")
    hashes = locked_hashes()
    users = {
        extra for extra in installed["confide"].metadata.get_all("Provides-Extra") or [] if extra != FOR_DEVELOPERS
    }
    made: dict[str, Component] = {}
    edges: dict[str, set[str]] = {}
    waiting: list[tuple[str, set[str]]] = [("confide", users | {""})]
    while waiting:
        name, extras = waiting.pop()
        below = list(needs(installed[name], extras))
        missing = [str(each) for each in below if canonicalize_name(each.name) not in installed]
        if missing:
            sys.exit(f"error: {name} needs {', '.join(missing)}, not installed in {folders}; run `make setup`")
        made.setdefault(name, component(installed[name], hashes.get(name, [])))
        known = edges.setdefault(name, set())
        for each in below:
            other = canonicalize_name(each.name)
            if other not in known or each.extras:
                if other not in edges or each.extras:
                    waiting.append((other, set(each.extras) | {""}))
                known.add(other)
    made["confide"].type = ComponentType.APPLICATION
    bom = Bom(components=[one for name, one in made.items() if name != "confide"])
    bom.metadata.component = made["confide"]
    for name, below_it in edges.items():
        bom.register_dependency(made[name], [made[other] for other in below_it])
    return bom


def main() -> None:
    """Write the bill, and say what it holds."""
    folders, output = sys.argv[1], Path(sys.argv[2])
    bom = bill(folders)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(JsonV1Dot6(bom).output_as_string(indent=2) + "\n")
    print(f"{output}: {len(bom.components)} packages below confide")


if __name__ == "__main__":
    main()
