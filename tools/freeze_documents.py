"""Write down the form of stored documents that have none yet: run once before a release, and commit the result.

What is written down is never changed: a field that comes later is left out of a document's bytes where it has its
default, so that documents of earlier releases keep their bytes and hashes (confide.documents).
"""

import importlib
import json
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import confide
import confide_client
import confide_server
from confide.documents import StoredDocument, document_key

FORMS = Path(confide.__file__).with_name("first_forms.json")


def stored_documents() -> Iterator[type[StoredDocument]]:
    """Every class of the three packages."""
    for package in (confide, confide_client, confide_server):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__") and ".migrations." not in module.name:
                importlib.import_module(module.name)
    seen = list(StoredDocument.__subclasses__())
    for kind in seen:
        yield kind
        seen += kind.__subclasses__()


def main() -> None:
    """Add what is missing."""
    forms: dict[str, list[str]] = json.loads(FORMS.read_text()) if FORMS.exists() else {}
    for kind in stored_documents():
        if kind.model_fields and not kind.__name__.startswith("_"):
            forms.setdefault(document_key(kind), list(kind.model_fields))
    FORMS.write_text(json.dumps(dict(sorted(forms.items())), indent=1) + "\n")


if __name__ == "__main__":
    main()
