"""A manifest that was altered anywhere fails by name, also where the coordinator itself altered it and signed again."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from confide import canonical
from confide.errors import ConfideError
from confide.files import sha256_file
from confide.identity.keys import SigningKey
from confide.sealing.manifest import sign_manifest, verify_manifest
from confide_client.commands import audit
from confide_server.coordinator.process import Coordinator
from typer.testing import CliRunner

from tests.coordinator_world import World, specification
from tests.fleet_node import FleetNode
from tests.integration.test_fleet_run import SIZE, wait_end

Manifest = dict[str, Any]
ZERO = "0" * 64


class Made:
    """A real run's manifest, and the keys."""

    def __init__(self, world: World, manifest: Manifest) -> None:
        self.root = world.consortium.root.public
        self.key = SigningKey.load(world.server / "identity.key")
        self.manifest = manifest

    def signed(self, manifest: Manifest | None = None) -> Manifest:
        """As the coordinator exports it."""
        return sign_manifest(copy.deepcopy(manifest or self.manifest), "coordinator", self.key)

    def code(self, manifest: Manifest) -> str:
        """Why it is refused."""
        with pytest.raises(ConfideError) as refused:
            verify_manifest(json.loads(canonical.encode(manifest)), self.root)
        return refused.value.code


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    world = World.create(tmp_path_factory.mktemp("manifest"), nodes=4)
    coordinator = Coordinator(world.server)
    coordinator.start()
    nodes = [FleetNode(world.of(name), coordinator.fleet_port, size=SIZE).start() for name in world.node_names]
    sealed = specification(sealing="sealed", rounds=2, min_cohort=3, clip_norm=100.0, exchange_deadline_s=30.0)
    run_id = coordinator.book.submit(world.submission(sealed, np.zeros(SIZE, dtype="<f4")))
    events = wait_end(coordinator, run_id, 180.0)
    for node in nodes:
        node.stop()
    manifest, _ = coordinator.book.checkpoint(run_id, None)
    coordinator.stop()
    assert events[-1].kind == "run_finished", events
    yield Made(world, manifest)


def test_an_unaltered_manifest_holds(made: Made) -> None:
    found = verify_manifest(made.signed(), made.root)
    assert (found.rounds, found.sealed, len(found.members), found.receipts) == (2, True, 4, 0)
    assert found.signatures >= 6, "q = 3 of 4 in each of two rounds"
    earlier = {**made.manifest, "round": 1, "rounds": made.manifest["rounds"][:1], "chain": made.manifest["chain"][:2]}
    earlier["model_sha256"] = earlier["chain"][-1]
    assert verify_manifest(made.signed(earlier), made.root).rounds == 1


def _set(*path: Any) -> Callable[[Manifest], None]:
    *where, last, value = path

    def change(manifest: Manifest) -> None:
        place: Any = manifest
        for key in where:
            place = place[key]
        place[last] = value(place[last]) if callable(value) else value

    return change


def _both(*changes: Callable[[Manifest], None]) -> Callable[[Manifest], None]:
    def change(manifest: Manifest) -> None:
        for one in changes:
            one(manifest)

    return change


def _evidence(name: str, value: Any) -> Callable[[Manifest], None]:
    return _set("rounds", 0, "evidence", 0, name, value)


MORE = lambda number: number + 1  # noqa: E731
FLIPPED = lambda text: ("1" if text[0] == "0" else "0") + text[1:]  # noqa: E731
LIES: dict[str, tuple[Callable[[Manifest], None], str]] = {
    "run_id": (_set("run_id", "f" * 32), "IdentityError"),
    "nonce": (_set("nonce", FLIPPED), "IdentityError"),
    "expires_at": (_set("expires_at", MORE), "IdentityError"),
    "administrator": (_set("administrator", "hospital-a"), "IdentityError"),
    "signature": (_set("signature", FLIPPED), "IdentityError"),
    "specification": (_set("specification", "seed", MORE), "SPEC_CHANGED"),
    "specification, with its hash": (
        lambda m: m.update(
            specification={**m["specification"], "seed": 77},
            specification_sha256=canonical.digest({**m["specification"], "seed": 77}),
        ),
        "IdentityError",
    ),
    "specification_sha256": (_set("specification_sha256", FLIPPED), "SPEC_CHANGED"),
    "base_model_sha256": (_set("base_model_sha256", FLIPPED), "SPEC_CHANGED"),
    "sealing": (_set("sealing", "none"), "SPEC_CHANGED"),
    "round": (_set("round", 1), "MODEL_CHAIN_BROKEN"),
    "model_sha256": (_set("model_sha256", FLIPPED), "MODEL_CHAIN_BROKEN"),
    "first model": (_set("chain", 0, FLIPPED), "IdentityError"),
    "a model on the way": (
        _both(_set("chain", 1, ZERO), _set("rounds", 0, "model_sha256", ZERO)),
        "CONTEXT_MISMATCH",
    ),
    "a model on the way, in one place": (_set("chain", 1, ZERO), "MODEL_CHAIN_BROKEN"),
    "no rosters": (_set("rosters", []), "IdentityError"),
    "a roster": (_set("rosters", 0, "document", "version", MORE), "IdentityError"),
    "a round is left out": (_set("rounds", lambda rounds: rounds[1:]), "MODEL_CHAIN_BROKEN"),
    "a round's number": (_set("rounds", 0, "round", 2), "MODEL_CHAIN_BROKEN"),
    "a contributor less": (_set("rounds", 0, "contributors", lambda names: names[1:]), "COHORT_NOT_EPOCH"),
    "another contributor": (_set("rounds", 0, "contributors", 0, "hospital-z"), "COHORT_NOT_EPOCH"),
    "attempts": (_set("rounds", 0, "attempts", MORE), "MODEL_CHAIN_BROKEN"),
    "no evidence": (_set("rounds", 0, "evidence", []), "COHORT_NOT_EPOCH"),
    "the evidence of the other round": (
        lambda m: m["rounds"][0].update(evidence=m["rounds"][1]["evidence"]),
        "MODEL_CHAIN_BROKEN",
    ),
    "evidence twice": (_set("rounds", 0, "evidence", lambda found: found * 2), "COHORT_NOT_EPOCH"),
    "evidence that is none": (_evidence("unknown", 1), "MALFORMED"),
    "epoch": (_evidence("epoch", MORE), "CONTEXT_MISMATCH"),
    "slot": (_evidence("slot", MORE), "CONTEXT_MISMATCH"),
    "attempt": (_evidence("attempt", MORE), "MODEL_CHAIN_BROKEN"),
    "evaluate_only": (_evidence("evaluate_only", True), "CONTEXT_MISMATCH"),
    "parent_model_sha256": (_evidence("parent_model_sha256", ZERO), "MODEL_CHAIN_BROKEN"),
    "roster_sha256": (_evidence("roster_sha256", ZERO), "ROSTER_STALE"),
    "bundles": (_evidence("bundles", FLIPPED), "CONTEXT_MISMATCH"),
    "layout": (_evidence("layout", lambda text: text + "00"), "CONTEXT_MISMATCH"),
    "n": (_evidence("n", MORE), "PARAMETERS_IMPOSSIBLE"),
    "c": (_evidence("c", 0), "CONTEXT_MISMATCH"),
    "q": (_evidence("q", 1), "PARAMETERS_IMPOSSIBLE"),
    "t": (_evidence("t", 4), "PARAMETERS_IMPOSSIBLE"),
    "d": (_evidence("d", 3), "PARAMETERS_IMPOSSIBLE"),
    "a member less in the list": (
        _both(
            _evidence("survivors", lambda found: found[1:]),
            _evidence("signers", lambda found: found[1:]),
            _set("rounds", 0, "contributors", lambda names: names[1:]),
        ),
        "CONTEXT_MISMATCH",
    ),
    "a list that is too small": (_evidence("survivors", lambda found: found[:1]), "LIST_TOO_SMALL"),
    "an upload": (_evidence("survivors", lambda found: [[found[0][0], ZERO], *found[1:]]), "CONTEXT_MISMATCH"),
    "too few signers": (_evidence("signers", lambda found: found[:2]), "QUORUM_SHORT"),
    "a signer twice": (_evidence("signers", lambda found: [found[0], *found]), "DUPLICATE_SIGNER"),
    "a signer's name": (
        _evidence("signers", lambda found: [{**found[0], "node": "hospital-z"}, *found[1:]]),
        "COHORT_NOT_EPOCH",
    ),
    "a signature": (
        _evidence("signers", lambda found: [{**found[0], "signature": "0" * 128}, *found[1:]]),
        "CONTEXT_MISMATCH",
    ),
    "anchored": (
        _evidence("signers", lambda found: [{**found[0], "anchored": not found[0]["anchored"]}, *found[1:]]),
        "CONTEXT_MISMATCH",
    ),
    "a receipt of nobody": (
        _set("receipts", [{"node": "hospital-a", "receipt": {"run_id": "x"}, "signature": "0" * 128}]),
        "IdentityError",
    ),
}
BY_THE_COORDINATOR_ALONE = {
    "metrics": _set("rounds", 0, "metrics", {"train_loss": {"mean": 0.0, "count": 4}}),
    "dropped": _set("rounds", 0, "dropped", {"hospital-a": "it was away"}),
    "promise": _set("rounds", 0, "promise", "words", "nothing can ever be known"),
    "release": _set("release", "9.9"),
    "precision": _set("precision", {}),
    "the last model": _both(
        _set("chain", -1, ZERO), _set("rounds", -1, "model_sha256", ZERO), _set("model_sha256", ZERO)
    ),
    "the coordinator": _set("coordinator", "hospital-a"),
    "its signature": _set("coordinator_signature", FLIPPED),
    "something new": lambda manifest: manifest.update(praise="much"),
}


@pytest.mark.parametrize("resigned", [False, True])
@pytest.mark.parametrize("lie", LIES)
def test_what_others_signed_cannot_be_altered_even_by_the_coordinator(made: Made, lie: str, resigned: bool) -> None:
    change, code = LIES[lie]
    manifest = made.signed()
    change(manifest)
    if resigned:
        manifest = made.signed({key: value for key, value in manifest.items() if not key.startswith("coordinator")})
    assert made.code(manifest) == code


@pytest.mark.parametrize("lie", BY_THE_COORDINATOR_ALONE)
def test_the_rest_cannot_be_altered_by_anybody_else(made: Made, lie: str) -> None:
    manifest = made.signed()
    BY_THE_COORDINATOR_ALONE[lie](manifest)
    assert made.code(manifest) == "IdentityError"


def test_every_field_is_altered_by_one_of_these_tests(made: Made) -> None:
    def flat(value: Any, path: tuple[str, ...] = ()) -> set[tuple[str, ...]]:
        if isinstance(value, dict) and path[:1] not in {("specification",), ("rosters",)} and len(path) < 4:
            return set().union(*(flat(one, (*path, key)) for key, one in value.items())) if value else {path}
        return {path}

    untouched, whole = flat(made.signed()), made.signed()
    for change in [*(change for change, _ in LIES.values()), *BY_THE_COORDINATOR_ALONE.values()]:
        altered = copy.deepcopy(whole)
        change(altered)
        untouched = {path for path in untouched if _at(altered, path) == _at(whole, path)}
    assert not untouched


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


@pytest.mark.parametrize("missing", ["rosters", "chain", "nonce", "rounds", "coordinator_signature", "specification"])
def test_a_manifest_that_lacks_something_is_malformed(made: Made, missing: str) -> None:
    manifest = made.signed()
    del manifest[missing]
    assert made.code(manifest) == "MALFORMED"


def test_another_root_proves_nothing(made: Made) -> None:
    with pytest.raises(ConfideError, match="does not verify"):
        verify_manifest(made.signed(), SigningKey.generate().public)


def test_the_command_checks_a_folder_with_its_files(made: Made, tmp_path: Path) -> None:
    (tmp_path / "adapter.bin").write_bytes(b"weights")
    files = {"adapter.bin": sha256_file(tmp_path / "adapter.bin")}
    (tmp_path / "manifest.json").write_text(json.dumps(made.signed() | {"files": files}, indent=2))
    arguments = ["verify-manifest", str(tmp_path), "--root", made.root.hex()]
    told = CliRunner().invoke(audit.app, arguments)
    assert told.exit_code == 0, told.output
    assert "hospital-a, hospital-b, hospital-c, hospital-d" in told.output and "2 rounds" in told.output
    (tmp_path / "adapter.bin").write_bytes(b"others")
    assert "adapter.bin is not the one" in str(CliRunner().invoke(audit.app, arguments).exception)
    (tmp_path / "more.bin").write_bytes(b"")
    assert CliRunner().invoke(audit.app, arguments).exit_code != 0
