"""All collections of all organizations on one machine: the only way to them, and it asks who is calling.

    library = Library(Path("library"))
    operator = Caller.operator("clinic")
    library.add(operator, "leaflets", [Path("fees.pdf")], embedder, Settings(...), print)
    library.search(operator, "leaflets", "What does a visit cost?", embedder)

Guarantee: every public method takes a caller and refuses it before anything of a collection is read (access.py).
"""

from collections.abc import Sequence
from pathlib import Path

from confide.errors import StateError
from confide.files import private_folder
from confide.identity.keys import SigningKey
from confide.rag.access import Caller, CollectionName, allow, refusal
from confide.rag.calibration import Calibration, calibration_of
from confide.rag.catalogue import Document, State
from confide.rag.collection import Collection, EmbedderPin, Say, Settings
from confide.rag.embedder import Embedder
from confide.rag.erasure import erase
from confide.rag.ingest import Report, add_files
from confide.rag.parsing.parent import Limits
from confide.rag.personal_data import check_region
from confide.rag.retrieval import Ranking, Searcher
from confide.text import line

DEFAULT_LIMIT = 10
MOST_FOUND = 200
MOST_QUESTION_CHARS = 4000
_ORGANIZATIONS = "organizations"


class Library:
    """One folder of mode 0700. Used by one thread at a time."""

    def __init__(self, root: Path) -> None:
        """Open; the folder is made when something is added."""
        self.root = root
        self._open: dict[CollectionName, tuple[Collection, Searcher]] = {}

    def collections(self, caller: Caller) -> list[CollectionName]:
        """Those that the caller may read."""
        folder = self.root / _ORGANIZATIONS / CollectionName(caller.organization, "x").organization
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
        found = []
        for name in names:
            if (folder / name / "collection.json").exists() and _readable(caller, name):
                found.append(CollectionName(caller.organization, name))
        return found

    def documents(self, caller: Caller, collection: str) -> list[Document]:
        """Of one collection, in every state; an erased one has no name any more."""
        return self._collection(caller, collection).catalogue().documents()

    def settings(self, caller: Caller, collection: str) -> Settings:
        """What a collection was made with."""
        return self._collection(caller, collection).settings

    def calibration(self, caller: Caller, collection: str) -> Calibration:
        """What `calibrate` kept; the cautious default before."""
        return Calibration.load(self._collection(caller, collection).calibration_folder)

    def add(
        self,
        caller: Caller,
        collection: str,
        files: Sequence[Path],
        embedder: Embedder,
        settings: Settings | None,
        say: Say,
        *,
        limits: Limits | None = None,
        again: bool = False,
    ) -> Report:
        """Add files to a collection.

        settings: of a collection that is not there yet; None refuses to make one. Of one that is there, what was chosen
        must be what it was made with: StateError.
        """
        name = CollectionName(caller.organization, collection)
        allow(caller, name, "write")
        if settings is None or self._folder(name).joinpath("collection.json").exists():
            target = self._collection(caller, collection)
            if settings is not None:
                target.check_chosen(settings)
        else:
            try:
                private_folder(self.root)
                target = Collection.create(self._folder(name), name, settings)
            except OSError as error:
                raise StateError(
                    f"{self._folder(name)} cannot be made ({error.strerror}); name another folder with --library"
                ) from error
        return add_files(target, files, embedder, say, limits=limits, again=again)

    def erase(self, caller: Caller, collection: str, which: str, say: Say) -> list[Path]:
        """Erase a document by identifier, or every version of a source by its name or a version's SHA-256: receipts."""
        name = CollectionName(caller.organization, collection)
        allow(caller, name, "write")
        target = self._collection(caller, collection)
        left = target.catalogue().documents(State.LIVE, State.REPLACED, State.ADDING, State.ERASING)
        sources = {one.source for one in left if which in {one.source, one.sha256}}
        chosen = [one.id for one in left if one.id == which] or [one.id for one in left if one.source in sources]
        if not chosen:
            raise StateError(f"collection {name} holds no document {line(which, 80)!r}; `confide rag list` names them")
        self._open.pop(name, None)
        return erase(target, chosen, self.receipt_key(), say)

    def search(
        self,
        caller: Caller,
        collection: str,
        question: str,
        embedder: Embedder,
        *,
        limit: int = DEFAULT_LIMIT,
        since: int = 0,
    ) -> Ranking:
        """The best passages for a question, with scores by part."""
        target, searcher = self.opened(caller, collection)
        target.check_embedder(embedder)
        question = checked_question(question)
        weight = calibration_of(target).lexical_weight
        [vector] = embedder.embed([question])
        most = max(1, min(limit, MOST_FOUND))
        return searcher.search(question, vector, caller, limit=most, weight=weight, since=since)

    def opened(self, caller: Caller, collection: str) -> tuple[Collection, Searcher]:
        """A collection that the caller may read, with its indices in memory."""
        target = self._collection(caller, collection)
        return self._open.setdefault(target.name, (target, Searcher(target)))

    def close(self) -> None:
        """Let go of what was opened; using the library again opens it anew."""
        while self._open:
            self._open.popitem()[1][0].close()

    def receipt_key(self) -> SigningKey:
        """The key that signs receipts of erasure, made when it is first needed (mode 0600)."""
        path = self.root / "receipt-key.pem"
        if not path.exists():
            private_folder(self.root)
            SigningKey.generate().save(path)
        return SigningKey.load(path)

    def _folder(self, name: CollectionName) -> Path:
        return self.root / _ORGANIZATIONS / name.organization / name.collection

    def _collection(self, caller: Caller, collection: str) -> Collection:
        name = CollectionName(caller.organization, collection)
        allow(caller, name)
        if name in self._open:
            return self._open[name][0]
        folder = self._folder(name)
        if not (folder / "collection.json").is_file():
            raise refusal(caller, name)
        return Collection(folder, name)


def settings_for(embedder: Embedder, **chosen: object) -> Settings:
    """Settings of a new collection with this embedder; what is None is left to its default. Raises StateError."""
    if chosen.get("region"):
        check_region(str(chosen["region"]))
    pin = EmbedderPin(name=embedder.name, sha256=embedder.sha256, dimension=embedder.dimension)
    return Settings.model_validate({"embedder": pin, **{k: v for k, v in chosen.items() if v is not None}})


def checked_question(question: str) -> str:
    """A question in one line. Raises StateError for one that is empty, too long, or no Unicode."""
    text = " ".join(str(question).split())
    if not text or len(text) > MOST_QUESTION_CHARS:
        raise StateError(f"a question has 1 to {MOST_QUESTION_CHARS} characters; this one has {len(text)}")
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise StateError("the question holds half of a surrogate pair; write it as UTF-8")
    return text


def _readable(caller: Caller, collection: str) -> bool:
    from confide.rag.access import AccessRefused

    try:
        allow(caller, CollectionName(caller.organization, collection))
    except (AccessRefused, StateError):
        return False
    return True
