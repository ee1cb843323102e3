"""A run's manifest, checked offline against the root's key: who signed what was summed, and from which model on.

    found = verify_manifest(json.loads(path.read_bytes()), root=bytes.fromhex(key))

The coordinator signs the manifest as a whole when it is exported; what members and the administrator signed stands in
it besides, so that most of it need not be taken on the coordinator's word (docs/sealing.md, "What a manifest proves").
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from confide import canonical
from confide.errors import ConfideError, FailureName, IdentityError, LedgerError, ProtocolFailure, SpecificationError
from confide.files import sha256_file
from confide.identity.keys import SigningKey, verify
from confide.identity.roster import Role, Roster, open_roster
from confide.identity.submission import SignedSubmission, verify_submission
from confide.privacy.receipts import DOMAIN as RECEIPT_DOMAIN
from confide.privacy.receipts import parse_receipt
from confide.runs.specification import Specification, parse_canonical
from confide.sealing import evidence
from confide.sealing.primitives import wire

DOMAIN = "manifest"
_UNSIGNED = frozenset({"coordinator_signature", "files", "tokens"})
"""Added after the coordinator signed: the files' hashes are checked against the files."""


@dataclass(frozen=True)
class Verified:
    """What was found."""

    run_id: str
    name: str
    rounds: int
    sealed: bool
    signatures: int
    """Of members, under the lists of what was summed."""
    receipts: int
    members: tuple[str, ...]
    """Everybody who is in some sum."""


def sign_manifest(manifest: Mapping[str, Any], coordinator: str, key: SigningKey) -> dict[str, Any]:
    """The manifest with the coordinator's name and signature."""
    named = {**manifest, "coordinator": coordinator}
    return {**named, "coordinator_signature": key.sign(DOMAIN, canonical.encode(named)).hex()}


def verify_manifest(manifest: Mapping[str, Any], root: bytes, folder: Path | None = None) -> Verified:
    """Check everything that can be checked without the coordinator.

    root: the consortium's public key, 32 raw bytes. folder: of the export, whose files are then hashed too.
    Raises by name: IdentityError (a signature), SPEC_CHANGED, MODEL_CHAIN_BROKEN, COHORT_NOT_EPOCH, LIST_TOO_SMALL,
    QUORUM_SHORT, DUPLICATE_SIGNER, CONTEXT_MISMATCH, ROSTER_STALE, PARAMETERS_IMPOSSIBLE, LedgerError, MALFORMED.
    """
    try:
        rosters = _rosters(manifest, root)
        specification = _specification(manifest, rosters)
        chain = _chain(manifest)
        signatures, members = _rounds(manifest, specification, rosters, chain)
        receipts = _receipts(manifest, rosters)
        _check_coordinator(manifest, rosters)
        if folder is not None:
            _check_files(manifest, folder)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError) as error:
        raise wire.malformed(f"the manifest is none of a run ({type(error).__name__}: {error})") from error
    return Verified(
        run_id=manifest["run_id"],
        name=specification.name,
        rounds=len(manifest["rounds"]),
        sealed=specification.sealed,
        signatures=signatures,
        receipts=receipts,
        members=tuple(sorted(members)),
    )


def _rosters(manifest: Mapping[str, Any], root: bytes) -> dict[str, Roster]:
    rosters = [open_roster(canonical.encode(one), root) for one in manifest["rosters"]]
    if not rosters:
        raise IdentityError("the manifest holds no roster; export the run again, with this release")
    if len({roster.consortium for roster in rosters}) != 1:
        raise IdentityError("the manifest holds rosters of two consortia")
    return {roster.digest: roster for roster in rosters}


def _specification(manifest: Mapping[str, Any], rosters: Mapping[str, Roster]) -> Specification:
    """The specification, if an administrator of one of the rosters signed it with the first model and the run id."""
    document = canonical.encode(manifest["specification"])
    specification = parse_canonical(document, "the manifest's specification")
    told = (manifest["specification_sha256"], manifest["base_model_sha256"], manifest["sealing"])
    if told != (specification.digest, specification.model.sha256, specification.sealing.kind):
        raise ProtocolFailure(
            FailureName.SPEC_CHANGED, "specification, base model or sealing are not those that the manifest names"
        )
    signed = SignedSubmission(
        run_id=manifest["run_id"],
        nonce=bytes.fromhex(manifest["nonce"]),
        expires_at=manifest["expires_at"],
        specification=document,
        initial_model_sha256=bytes.fromhex(manifest["chain"][0]),
        administrator=manifest["administrator"],
        signature=bytes.fromhex(manifest["signature"]),
        parent_run_id=manifest.get("parent_run_id", ""),
        parent_round=manifest.get("parent_round", 0),
        cosigned=tuple((name, bytes.fromhex(one)) for name, one in manifest.get("cosigned", [])),
    )
    failure: ConfideError | None = None
    for roster in rosters.values():  # who was revoked later could sign before
        try:
            return verify_submission(roster, signed)
        except (IdentityError, ProtocolFailure) as error:
            failure = error
    raise failure or SpecificationError("nobody signed the run")


def _chain(manifest: Mapping[str, Any]) -> list[str]:
    chain, rounds = list(manifest["chain"]), manifest["rounds"]
    numbers = [entry["round"] for entry in rounds]
    ends = [entry["model_sha256"] for entry in rounds]
    if numbers != list(range(1, manifest["round"] + 1)) or ends != chain[1:] or chain[-1] != manifest["model_sha256"]:
        raise ProtocolFailure(
            FailureName.MODEL_CHAIN_BROKEN, "rounds, their models and the chain of models do not agree with each other"
        )
    return chain


def _rounds(
    manifest: Mapping[str, Any], specification: Specification, rosters: Mapping[str, Roster], chain: list[str]
) -> tuple[int, set[str]]:
    """(signatures under lists, names in some sum)."""
    signatures, members = 0, set[str]()
    for entry in manifest["rounds"]:
        number, told = entry["round"], list(entry["contributors"])
        members |= set(told)
        if not specification.sealed:
            continue
        names: list[str] = []
        for item in entry["evidence"]:
            found = evidence.parse(item)
            expected = chain[number - 2] if number > 1 else ""
            if found.parent_model_sha256 != expected or found.attempt != entry["attempts"]:
                raise ProtocolFailure(
                    FailureName.MODEL_CHAIN_BROKEN, f"round {number} was signed for another parent model or attempt"
                )
            names += evidence.check_sum(
                found,
                rosters,
                run_id=manifest["run_id"],
                specification_sha256=specification.digest,
                model_sha256=chain[number - 1],
                round_number=number,
                min_cohort=specification.federation.min_cohort,
            )
            signatures += len(found.signers)
        if sorted(names) != sorted(told) or len(set(names)) != len(names) or not names:
            raise ProtocolFailure(
                FailureName.COHORT_NOT_EPOCH,
                f"round {number} is said to hold {', '.join(map(str, told)) or 'nobody'}; signed is "
                f"{', '.join(sorted(names)) or 'nothing'}",
            )
    return signatures, members


def _receipts(manifest: Mapping[str, Any], rosters: Mapping[str, Roster]) -> int:
    for item in manifest["receipts"]:
        data = canonical.encode(item["receipt"])
        _by_any(rosters, item["node"], Role.NODE, RECEIPT_DOMAIN, data, bytes.fromhex(item["signature"]))
        receipt = parse_receipt(data)
        if (receipt.run_id, receipt.specification) != (manifest["run_id"], manifest["specification_sha256"]):
            raise LedgerError(f"a receipt of {item['node']} is for another run or specification")
    return len(manifest["receipts"])


def _check_coordinator(manifest: Mapping[str, Any], rosters: Mapping[str, Roster]) -> None:
    signed = {key: value for key, value in manifest.items() if key not in _UNSIGNED}
    signature = bytes.fromhex(manifest["coordinator_signature"])
    name = manifest["coordinator"]
    _by_any(rosters, name, Role.COORDINATOR, DOMAIN, canonical.encode(signed), signature)


def _by_any(rosters: Mapping[str, Roster], name: str, role: Role, domain: str, body: bytes, signature: bytes) -> None:
    """Verify under the key that some roster gives this member. Raises IdentityError."""
    members = (member for roster in rosters.values() for member in roster.members)
    keys = {member.identity_key for member in members if member.name == name and member.role is role}
    if not keys:
        raise IdentityError(f"{name!r} is no {role.value} of the consortium")
    failure: IdentityError | None = None
    for key in sorted(keys):
        try:
            return verify(bytes.fromhex(key), domain, body, signature)
        except IdentityError as error:
            failure = error
    raise failure or IdentityError(f"{name} did not sign it")


def _check_files(manifest: Mapping[str, Any], folder: Path) -> None:
    stated: Mapping[str, str] = manifest["files"]
    there = {path.name: path for path in folder.iterdir() if path.is_file() and path.name != "manifest.json"}
    odd = sorted(set(stated) ^ set(there)) or [name for name in stated if sha256_file(there[name]) != stated[name]]
    if odd:
        raise ProtocolFailure(FailureName.MODEL_CHAIN_BROKEN, f"the file {odd[0]} is not the one that was exported")
