"""The folders of release 0.1, with certificates of now: those of then run out in May 2027."""

import shutil
import time
from pathlib import Path

from confide.identity.consortium import Consortium
from confide.identity.enrolment import accept_admission, make_renewal

RELEASE = Path(__file__).parent / "fixtures" / "v0.1"


def node_of_then(folder: Path) -> Path:
    """A copy of the node's folder in an empty one; its root of then renews it, as it would."""
    shutil.copytree(RELEASE, folder, dirs_exist_ok=True)
    for key in folder.glob("*/*.key"):
        key.chmod(0o600)  # which version control does not keep
    node = folder / "node"
    accept_admission(node, Consortium.open(folder / "consortium").renew(make_renewal(node)), time.time())
    return node
