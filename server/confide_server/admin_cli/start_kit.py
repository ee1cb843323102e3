"""`confide consortium start-kit`: a whole consortium in one command, and one file for each organization.

confide consortium start-kit builders --name builders --address coordinator.example.org \
    --organization hospital-a --organization bank-b --organization law-firm-c
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide.errors import IdentityError
from confide.files import private_folder, write_atomic
from confide.identity.consortium import Consortium
from confide.identity.enrolment import accept_admission, check_name, make_request
from confide.identity.kit import PolicyProposal, StartKit
from confide.identity.pkcs11_keys import TokenPlace
from confide.identity.roster import Role
from confide.identity.signed import validated

ADMINISTRATOR, COORDINATOR = "administrator", "coordinator"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be made below `folder`."""

    folder: Path
    name: str
    organizations: tuple[str, ...]
    address: str
    fleet_port: int
    control_port: int
    demo: bool
    passphrase: bytes | None
    token: TokenPlace | None = None
    hours: float
    policy: PolicyProposal


def make(plan: Plan) -> Consortium:
    """Root, administrator, coordinator and kits: folder/{root,administrator,coordinator,kits}. Raises IdentityError.

    Nothing is overwritten: a folder that holds something is refused before anything is made.
    """
    _check(plan)
    private_folder(plan.folder)
    consortium = Consortium.create(
        plan.folder / "root",
        plan.name,
        demo=plan.demo,
        control_address=f"{plan.address}:{plan.control_port}",
        fleet_address=f"{plan.address}:{plan.fleet_port}",
        passphrase=plan.passphrase,
        token=plan.token,
    )
    _admit(consortium, plan.folder / ADMINISTRATOR, ADMINISTRATOR, Role.ADMINISTRATOR)
    _coordinator(consortium, plan)
    kits = private_folder(plan.folder / "kits")
    for name in plan.organizations:
        kit = StartKit(demo=plan.demo, invitation=consortium.invite(name, hours=plan.hours), policy=plan.policy)
        write_atomic(kits / f"{name}.kit.json", kit.to_bytes())
    return consortium


def _check(plan: Plan) -> None:
    if plan.folder.exists() and any(plan.folder.iterdir()):
        raise IdentityError(f"{plan.folder} is not empty; choose another folder, or add a member with `invite`")
    names = [ADMINISTRATOR, COORDINATOR, *plan.organizations]
    for name in names:
        check_name(name)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise IdentityError(f"{', '.join(twice)} is named twice; every member has a name of its own")


def _admit(consortium: Consortium, folder: Path, name: str, role: Role, addresses: tuple[str, ...] = ()) -> None:
    admission = consortium.admit(make_request(folder, name, role, addresses))
    accept_admission(folder, admission, time.time(), root=consortium.root.public.hex())


def _coordinator(consortium: Consortium, plan: Plan) -> None:
    from confide_server.coordinator.process import Settings, write_settings

    folder = plan.folder / COORDINATOR
    _admit(consortium, folder, COORDINATOR, Role.COORDINATOR, (plan.address,))
    bind = "127.0.0.1" if plan.demo else "0.0.0.0"  # noqa: S104 - nodes connect from elsewhere
    write_settings(folder, Settings(bind=bind, fleet_port=plan.fleet_port, control_port=plan.control_port))


def proposal(
    *, methods: Sequence[str] | None, data: str, privacy: Sequence[str] | None, organizations: int
) -> PolicyProposal:
    """What the kits propose; what is not given keeps the cautious default. Raises IdentityError."""
    document: dict[str, Any] = {"data_sets": [data], "min_cohort": max(2, min(3, organizations))}
    if methods:
        document["methods"] = list(methods)
    if privacy:
        document["privacy_units"] = list(privacy)
    return validated(PolicyProposal, document, "the proposed policy")


def next_steps(folder: Path, organizations: Sequence[str], *, demo: bool, hours: float) -> Iterator[str]:
    """What people do now, one line each."""
    yield "read that key to every organization over the telephone; hand each its own file, as a secret:"
    for name in organizations:
        yield f"  {folder / 'kits' / name}.kit.json   (holds {hours:g} hours)"
    yield f"next, at the coordinator:   confide server start {folder / COORDINATOR}"
    yield "then, at each organization: confide node join NAME.kit.json --data records.jsonl --model MODEL-FOLDER"
    yield f"then, here:                 confide consortium admit --waiting --folder {folder / 'root'} --admin " + str(
        folder / ADMINISTRATOR
    )
    if demo:
        yield "this is a demo's root: all of it may lie on one machine, and no production node obeys it"
    else:
        yield f"move {folder / 'root'} to a machine that is normally off; nothing but admitting and revoking needs it"
