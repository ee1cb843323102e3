"""From a start kit to a node that may start: keys, admission, policy, model and data, one after the other.

Every step that was done is skipped when the command runs again, so that a join that was cut off goes on where it was.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from confide.errors import IdentityError, TransportError
from confide.files import write_atomic
from confide.identity.enrolment import accept_admission, make_request
from confide.identity.kit import StartKit
from confide.models.store import ModelStore
from confide.transport.control import ControlClient

from confide_client.data.datasets import DataSets, describe
from confide_client.policy.policy import parse_policy
from confide_client.state import StateFolder

POLL_S = 2.0
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the organization brings. data: a file for each data set name; models: folders or packaged names."""

    data: tuple[tuple[str, Path], ...] = ()
    models: tuple[str, ...] = ()
    wait_s: float = 86400.0


def join(state: StateFolder, kit: StartKit, wish: Wish, say: Say) -> None:
    """Do what is left to be done. Raises ConfideError naming what stopped it; then the same command goes on."""
    _admitted(state, kit, wish.wait_s, say)
    hashes = [_model(state, source, say) for source in wish.models]
    registry = DataSets(state.root)
    for name, path in wish.data:
        say(describe(name, registry.add(name, path)))
    _policy(state, kit, hashes, say)


def _admitted(state: StateFolder, kit: StartKit, wait_s: float, say: Say) -> None:
    invitation = kit.invitation
    if (state.root / "consortium.json").exists():
        say(f"already a member of {state.member().membership.consortium}")
        return
    if not (state.root / "identity.key").exists():
        make_request(state.root, invitation.name, "node", invitation=invitation)
        say(f"made the keys of {invitation.name}")
    admission = _fetched(state, kit, wait_s, say)
    member = accept_admission(state.root, admission, time.time(), root=invitation.root_public)
    say(f"{member.name} is a member of {member.membership.consortium}; root key {invitation.root_public}")


def _fetched(state: StateFolder, kit: StartKit, wait_s: float, say: Say) -> bytes:
    """The admission, waited for. A coordinator that is not there yet is waited for too."""
    deadline, said = time.monotonic() + wait_s, ""
    while True:
        try:
            with ControlClient.of_invitation(kit.invitation, proxy=state.settings.proxy) as client:
                admission = client.fetch_admission()
                if admission is None:
                    client.enrol((state.root / "request.json").read_bytes())
                else:
                    return admission
            now = "the request is with the coordinator; waiting for the consortium's root to admit it"
        except TransportError as error:
            now = f"waiting for the coordinator: {error}"
        if time.monotonic() > deadline:
            raise IdentityError(f"not admitted within {wait_s:g} s ({now}); run the same command again")
        if now != said:
            say(now)
            said = now
        time.sleep(POLL_S)


def _model(state: StateFolder, source: str, say: Say) -> str:
    digest = ModelStore(state.models).add(source, Path(source).name.lower())
    say(f"model {source} is here as {digest}")
    return digest


def _policy(state: StateFolder, kit: StartKit, hashes: Sequence[str], say: Say) -> None:
    if state.policy.exists():
        say(f"{state.policy} is left as it is")
        return
    text = policy_text(kit, hashes)
    parse_policy(text)
    write_atomic(state.policy, text.encode())
    say(f"wrote {state.policy}: the consortium's proposal, and every run asks a person. Read it; it is yours to change")


def policy_text(kit: StartKit, hashes: Sequence[str]) -> str:
    """policy.toml as the kit proposes it, for the models that were brought. `approval` is always "ask"."""
    proposed = kit.policy
    return _POLICY.format(
        root=kit.invitation.root_public,
        demo="allow_demo_root = true              # a root for trying things out: never for real data\n" * kit.demo,
        methods=_listed(proposed.methods),
        models=_listed(hashes),
        data_sets=_listed(proposed.data_sets),
        min_cohort=proposed.min_cohort,
        max_rounds=proposed.max_rounds,
        max_local_steps=proposed.max_local_steps,
        privacy_units=_listed(proposed.privacy_units),
    )


def _listed(values: Sequence[str]) -> str:
    return json.dumps(list(values))


_POLICY = """\
# What this node allows. What is not written here is denied; changes take effect at once.
# Proposed by the consortium's start kit. Every run still waits until a person approves it (approval = "ask").
version = 1

# The consortium's root key. Compare it with your consortium over another channel.
consortium_root = "{root}"
{demo}
methods = {methods}
models = {models}
data_sets = {data_sets}

min_cohort = {min_cohort}                      # fewest organizations in any sum that holds this node's update
max_rounds = {max_rounds}
max_local_steps = {max_local_steps}               # optimizer steps a round
training_hours = ["00:00-24:00"]    # local time, e.g. ["mon-fri 20:00-06:00", "sat,sun 00:00-24:00"]

sealing = "required"                # "optional" lets a run show this node's update to the coordinator: research only
privacy_units = {privacy_units}     # "none" allows runs without differential privacy
approval = "ask"                    # "auto": what passes the rules above needs no person
hardware = ["cores", "memory", "vector_units", "accelerator"]   # what the consortium is shown of this machine

# What may be spent in all, per group of data sets; a private run needs one.
# [budgets.records]
# epsilon = 8.0
# delta = 1e-6
"""
