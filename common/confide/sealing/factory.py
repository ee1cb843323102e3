"""The two halves of update transport as a run's specification wants them. The set is closed.

>>> # collector = make_collector(specification, roster, folder, run_id, schema_size)
>>> # member = make_member(specification, roster, node, identity_key, folder, run_id, schema_size, ...)
"""

from pathlib import Path

from confide.identity.keys import SigningKey
from confide.identity.roster import Roster
from confide.runs.specification import Specification
from confide.sealing.plain import PlainCollector, PlainMember
from confide.sealing.roles import Collector, Member


def make_collector(
    specification: Specification, roster: Roster, folder: Path, run_id: str, schema_size: int
) -> Collector:
    """The coordinator half for one run; goes on with what an earlier process left in `folder`."""
    return PlainCollector(specification=specification, roster=roster, folder=folder, schema_size=schema_size)


def make_member(
    specification: Specification,
    roster: Roster,
    node: str,
    identity_key: SigningKey,
    folder: Path,
    run_id: str,
    schema_size: int,
    *,
    initial_model_sha256: bytes,
) -> Member:
    """The node half for one run."""
    return PlainMember(specification=specification, folder=folder, schema_size=schema_size)
