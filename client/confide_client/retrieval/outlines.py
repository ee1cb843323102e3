"""What the node tells of its documents: made once for each state of them, and charged in the ledger each time.

    outline.json      the newest that the ledger was charged for; it may go out as often as wanted
    outline.pending   made, not yet charged: nothing of it has left

Guarantee: noise is drawn once for each charge. A crash between the two leaves a pending outline, which the next call
charges and uses as it is; where it is gone, a new one is charged anew.
"""

import hashlib
import secrets
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from confide import canonical
from confide.documents import StoredDocument
from confide.errors import PolicyRefusal, StateError
from confide.files import write_atomic
from confide.inquiries.documents import MOST_EPSILON, Outline
from confide.inquiries.outline import cost, noised
from confide.privacy.filter import Budget
from confide.privacy.ledger import Ledger
from confide.privacy.noise.randomness import SecureRandom
from confide.rag.access import Caller
from confide.rag.catalogue import Document
from confide.rag.collection import Collection, split_passage_name
from confide.rag.embedder import Embedder
from confide.rag.library import Library
from confide.rag.retrieval import passage_of
from confide.runs.sections import Sha256
from numpy.typing import NDArray
from pydantic import ValidationError

from confide_client.policy.policy import Policy
from confide_client.policy.retrieval import Retrieval

NAME, PENDING = "outline.json", "outline.pending"
DATA = "rag-index"
"""What the ledger calls the documents of all collections."""


class StoredOutline(StoredDocument):
    """version: of the documents and settings that it was made of; run: under which the ledger was charged.

    collections, embedder: what it speaks of, and whose embeddings those are.
    """

    version: Sha256
    run: str
    outline: Outline
    collections: tuple[str, ...] = ()
    embedder: str = ""


def make_outline(
    folder: Path, library: Library, caller: Caller, embedder: Embedder, policy: Policy, ledger: Ledger, epsilon: float
) -> tuple[Outline, bool]:
    """(outline of the documents as they are now, whether it was charged now). folder: the node's state folder.

    Raises PolicyRefusal, BUDGET_EXHAUSTED, LedgerError or StateError; then nothing was spent.
    """
    if not 0 < epsilon <= MOST_EPSILON:
        raise StateError(f"an outline's epsilon is above 0 and at most {MOST_EPSILON:g}; got {epsilon:g}")
    rules, budget = _allowed(policy)
    collections = [library.opened(caller, name)[0] for name in rules.collections]
    for collection in collections:
        collection.check_embedder(embedder)
    version = _version(collections, epsilon, budget.delta)
    known = load_outline(folder)
    if known is not None and known.version == version:
        return known.outline, False
    pending = _pending(folder, ledger, collections, version, budget, epsilon)
    if not _spent(ledger, pending.run):
        ledger.approve(
            run=pending.run, group=rules.budget, data=DATA, unit="record", specification=version,
            cost=cost(pending.outline.noise_multiplier), budget=budget,
        )  # fmt: skip
        ledger.reserve(pending.run, 1, budget)
        ledger.spend(pending.run, 1)
    ledger.release(pending.run)
    (folder / PENDING).replace(folder / NAME)
    return pending.outline, True


def load_outline(folder: Path) -> StoredOutline | None:
    """The newest that was charged. Raises StateError when damaged."""
    return _load(folder / NAME)


def told_outline(folder: Path, policy: Policy, embedder: Embedder) -> Outline | None:
    """The newest that was charged, if the policy still opens each collection that it speaks of; None else.

    Raises StateError when damaged. Of another embedder it would lead askers astray, and is not told either.
    """
    stored = load_outline(folder)
    opened = () if policy.retrieval is None else policy.retrieval.collections
    # "": made before it was kept.
    if stored is None or stored.embedder not in ("", embedder.sha256) or not set(stored.collections) <= set(opened):
        return None
    return stored.outline


def _allowed(policy: Policy) -> tuple[Retrieval, Budget]:
    if policy.retrieval is None or not policy.retrieval.budget:
        raise PolicyRefusal(
            "the policy names no budget that pays for an outline. Set budget under [retrieval] in policy.toml, and "
            "that group under [budgets]; without an outline this node is asked every question"
        )
    group = policy.budgets.get(policy.retrieval.budget)
    if group is None:
        raise PolicyRefusal(
            f"[retrieval] names the budget {policy.retrieval.budget!r}, which is not under [budgets] in policy.toml; "
            "add it"
        )
    return policy.retrieval, Budget(epsilon=group.epsilon, delta=group.delta)


def _version(collections: Sequence[Collection], epsilon: float, delta: float) -> str:
    documents = [
        [
            str(one.name),
            one.settings.embedder.sha256,
            sorted((d.id, d.text_sha256) for d in one.catalogue().live().values()),
        ]
        for one in collections
    ]
    return hashlib.sha256(canonical.encode([documents, epsilon, delta])).hexdigest()


def _live(collection: Collection) -> Iterable[Document]:
    return collection.catalogue().live().values()


def _pending(
    folder: Path, ledger: Ledger, collections: Sequence[Collection], version: str, budget: Budget, epsilon: float
) -> StoredOutline:
    """What a crash left of this version, or a new one: durable, and nothing of it has left."""
    left = _load(folder / PENDING)
    if left is not None and left.version == version:
        return left
    if left is not None and left.run in ledger.state.runs:
        ledger.release(left.run)
    units = {str(number): _units(one) for number, one in enumerate(collections)}
    outline = noised(units, epsilon=epsilon, delta=budget.delta, random=SecureRandom())
    made = StoredOutline(
        version=version, run=secrets.token_hex(16), outline=outline,
        collections=tuple(one.name.collection for one in collections), embedder=collections[0].settings.embedder.sha256,
    )  # fmt: skip
    write_atomic(folder / PENDING, canonical.encode(made.model_dump(mode="json")))
    return made


def _spent(ledger: Ledger, run: str) -> bool:
    return run in ledger.state.runs and ledger.state.run(run).draws.get(1) is True


def _units(collection: Collection) -> NDArray[np.float32]:
    """(N, D): the mean embedding of each live document, or of each record of one."""
    catalogue = collection.catalogue()
    live = catalogue.live()
    names, _, vectors = collection.fresh_store(catalogue).everything()
    rows: dict[tuple[str, str | None], list[int]] = defaultdict(list)
    for row, name in enumerate(names):
        identifier, ordinal = split_passage_name(name)
        if identifier in live:
            document = live[identifier]
            passage = passage_of(collection.name, document, collection.content(document), ordinal)
            rows[identifier, passage.record].append(row)
    if not rows:
        return np.zeros((0, collection.settings.embedder.dimension), np.float32)
    return np.stack([vectors[places].mean(axis=0) for places in rows.values()]).astype(np.float32)


def _load(path: Path) -> StoredOutline | None:
    try:
        return StoredOutline.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise StateError(f"{path} is damaged; remove it, and make the outline anew (it is charged again)") from error
