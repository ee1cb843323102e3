"""Files into a collection: each is read once, parsed in a limited child, and found only when all of it is stored.

A file that cannot be read costs an error with its name; the rest goes on. The same bytes are not added twice. A later
file of the same name is a new version: from then on the new one is found, and the old one's text stays until erased.
"""

import hashlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path

from confide.errors import DataError, StateError
from confide.rag.canonical_text import CanonicalText, canonical_text
from confide.rag.catalogue import Document, Quarantined, State
from confide.rag.chunks import Span, passages
from confide.rag.collection import Collection, Say, passage_name
from confide.rag.documents import Content, Encoded, encoded
from confide.rag.embedder import Embedder
from confide.rag.injection import suspicion
from confide.rag.parsing.blocks import Block, Left, Unreadable
from confide.rag.parsing.parent import Limits, ParserProcess, format_of
from confide.rag.personal_data import counts, findings, masked
from confide.rag.stores.base import Row
from confide.text import line

_GROUP_PASSAGES = 256
_GROUP_DOCUMENTS = 64
_SOURCE_CHARS = 400


@dataclass
class Report:
    """What became of each file."""

    added: list[Document] = field(default_factory=list)
    replaced: int = 0
    there: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    def summary(self) -> str:
        """One line of how many files became what."""
        passages = _counted(sum(one.passages for one in self.added), "passage")
        return f"{len(self.added)} added with {passages}, {len(self.there)} there already, {len(self.failed)} not added"


@dataclass(frozen=True)
class _Ready:
    """A file that was parsed and cut into passages."""

    document: Document
    content: Content
    files: Encoded
    left_out: Mapping[Left, int]


def add_files(
    collection: Collection,
    files: Sequence[Path],
    embedder: Embedder,
    say: Say,
    *,
    limits: Limits | None = None,
    again: bool = False,
) -> Report:
    """Add what can be added. again: also files whose content was erased before."""
    collection.check_embedder(embedder)
    report = Report()
    with ParserProcess(limits or Limits()) as parser, collection.writing(say):
        _embed_lost(collection, embedder, say)
        group: list[_Ready] = []
        for ready in _prepared(collection, files, embedder, parser, report, say, again):
            group.append(ready)
            enough = sum(one.document.passages for one in group) >= _GROUP_PASSAGES
            if enough or len(group) >= _GROUP_DOCUMENTS:
                _store(collection, group, embedder, report, say)
                group = []
        _store(collection, group, embedder, report, say)
        _forget_replaced(collection)
        collection.save_lexical(say)
    if any(one.quarantined for one in report.added):
        say("what is in quarantine reads like an instruction to a machine and is not shown; `list --quarantine` has it")
    return report


def _prepared(
    collection: Collection,
    files: Sequence[Path],
    embedder: Embedder,
    parser: ParserProcess,
    report: Report,
    say: Say,
    again: bool,
) -> Iterator[_Ready]:
    seen: set[str] = set()
    taken: dict[str, tuple[Path, str]] = {}
    for path in files:
        name = line(path.name)
        try:
            data = _read(path, parser.limits)
            sha256 = hashlib.sha256(data).hexdigest()
            _check_name(path, sha256, taken)
            if _there(collection, path.name, sha256, seen, again):
                report.there.append(name)
                say(f"{name}: is there already{_elsewhere(collection, path.name, sha256, taken)}")
                taken[path.name] = path, sha256
                continue
            ready = _parsed(collection, path, data, sha256, embedder, parser)
        except (DataError, Unreadable) as error:
            report.failed.append((name, str(error)))
            continue
        seen.add(sha256)
        taken[path.name] = path, sha256
        yield ready


def _elsewhere(collection: Collection, source: str, sha256: str, taken: Mapping[str, tuple[Path, str]]) -> str:
    """Where the same bytes stand, unless under this name."""
    there = [one.source for one in collection.catalogue().documents(State.LIVE) if one.sha256 == sha256]
    there += [name for name, (_, other) in taken.items() if other == sha256]
    return "" if source in there else f", as {line(there[0])}"


def _read(path: Path, limits: Limits) -> bytes:
    if len(path.name) > _SOURCE_CHARS:
        raise DataError(f"has a name of {len(path.name)} characters; at most {_SOURCE_CHARS} are taken")
    if any("\ud800" <= char <= "\udfff" for char in path.name):
        raise DataError("has a name that is no UTF-8; rename it")
    try:
        if path.is_dir():
            raise DataError("is a folder; name the files in it")
        if not path.is_file():
            raise DataError("is no file" if path.exists() else "is not there; check its name")
        with path.open("rb") as file:
            data = file.read(limits.file_bytes + 1)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}") from error
    if len(data) > limits.file_bytes:
        raise DataError(f"has more than {limits.file_bytes:,} bytes; split it")
    if not data:
        raise DataError("is empty")
    return data


def _check_name(path: Path, sha256: str, taken: Mapping[str, tuple[Path, str]]) -> None:
    """Two folders' files of one name are two documents, and no versions of one."""
    other, same = taken.get(path.name, (path, sha256))
    if same != sha256:
        raise DataError(
            f"has the name of another file of this command, {other}: one would replace the other. Rename one"
        )


def _there(collection: Collection, source: str, sha256: str, seen: AbstractSet[str], again: bool) -> bool:
    documents = collection.catalogue().documents()
    live = [one for one in documents if one.state is State.LIVE]
    if sha256 in seen or any(one.sha256 == sha256 for one in live):
        # Another file may say the same; what this one said before must not be found any longer.
        return all(one.sha256 == sha256 for one in live if one.source == source)
    erased = [one for one in documents if one.sha256 == sha256 and one.state in {State.ERASED, State.ERASING}]
    if erased and not again:
        raise DataError(f"was erased from this collection (receipt {erased[-1].receipt}); say --again to add it anew")
    return False


def _parsed(
    collection: Collection, path: Path, data: bytes, sha256: str, embedder: Embedder, parser: ParserProcess
) -> _Ready:
    format = format_of(path.name)
    embedder.load_soon()  # while the file is parsed, in its own process
    parsed = parser.parse(format, data)
    text, found = _canonical(collection, parsed.blocks)
    spans = passages(text, embedder.count_tokens, most_tokens=_most_tokens(collection, embedder))
    if not spans:
        raise DataError("holds no text")
    files = encoded(text, spans)
    earlier = [one for one in collection.catalogue().documents() if one.source == path.name]
    document = Document(
        id=secrets.token_hex(16),
        state=State.ADDING,
        source=path.name,
        sha256=sha256,
        text_sha256=files.text_sha256,
        structure_sha256=files.structure_sha256,
        format=format,
        version=1 + max((one.version for one in earlier), default=0),
        added=int(time.time()),
        bytes=len(data),
        characters=len(text.text),
        passages=len(spans),
        pages=max((mark.page or 0 for mark in text.marks), default=0),
        personal_data=found,
        quarantined=_quarantined(text.text, spans),
    )
    return _Ready(document, Content(text.text, text.marks, tuple(spans)), files, parsed.left_out)


def _most_tokens(collection: Collection, embedder: Embedder) -> int:
    # Two ends, and some room for the headings in front.
    return min(collection.settings.most_tokens, embedder.most_tokens - 48)


def _canonical(collection: Collection, blocks: Sequence[Block]) -> tuple[CanonicalText, dict[str, int]]:
    handling, region = collection.settings.personal_data, collection.settings.region or None
    if handling == "keep":
        return canonical_text(blocks), {}
    total: dict[str, int] = {}

    def change(text: str) -> str:
        found = findings(text, region)
        for kind, count in counts(found).items():
            total[kind] = total.get(kind, 0) + count
        return masked(text, found) if found else text

    text = canonical_text(blocks, change)
    if total and handling == "refuse":
        said = ", ".join(f"{count} x {kind}" for kind, count in total.items())
        raise DataError(f"holds personal data ({said}), which this collection refuses; take it out and add it again")
    return text, total


def _quarantined(text: str, spans: Sequence[Span]) -> tuple[Quarantined, ...]:
    found = ((ordinal, suspicion(text[span.start : span.stop])) for ordinal, span in enumerate(spans))
    return tuple(Quarantined(ordinal=ordinal, reason=reason) for ordinal, reason in found if reason is not None)


def embedded_text(content: Content, ordinal: int) -> str:
    """What stands for a passage before the embedder: its headings, then its text."""
    span = content.passages[ordinal]
    headings = content.marks_of(span)[0].headings
    text = content.text[span.start : span.stop]
    return f"{' > '.join(headings)}\n{text}" if headings else text


def _store(collection: Collection, group: Sequence[_Ready], embedder: Embedder, report: Report, say: Say) -> None:
    if not group:
        return
    rows = _rows([(one.document, one.content) for one in group], embedder)
    collection.commit(collection.catalogue().with_documents(one.document for one in group))
    for one in group:
        collection.documents.write(one.document.id, one.files)
    collection.store.add(rows)
    live = [one.document.model_copy(update={"state": State.LIVE}) for one in group]
    sources = {one.source for one in live}
    old = {one.source: one for one in collection.catalogue().documents(State.LIVE) if one.source in sources}
    replaced = [one.model_copy(update={"state": State.REPLACED}) for one in old.values()]
    collection.commit(collection.catalogue().with_documents([*replaced, *live]))
    report.added += live
    report.replaced += len(replaced)
    for document, one in zip(live, group, strict=True):
        remarks = _remarks(document, old.get(document.source), one.left_out)
        say(f"{line(document.source)}: {_counted(document.passages, 'passage')}{remarks}")


def _rows(documents: Sequence[tuple[Document, Content]], embedder: Embedder) -> list[Row]:
    places = [(document, content, place) for document, content in documents for place in range(document.passages)]
    vectors = embedder.embed([embedded_text(content, place) for _, content, place in places])
    return [
        Row(passage_name(document.id, place), document.id, document.added, vector)
        for (document, _, place), vector in zip(places, vectors, strict=True)
    ]


def _embed_lost(collection: Collection, embedder: Embedder, say: Say) -> None:
    """What a store lost (a folder that was not restored, a table that was dropped) is made again from the texts."""
    catalogue = collection.catalogue()
    lost = collection.lacking(catalogue, collection.store.counts())
    if not lost:
        return
    collection.store.remove({one.id for one in lost})
    for document in lost:
        try:
            content = collection.documents.read(document)
        except StateError as error:
            say(f"{line(document.source)}: its embeddings are lost, and {error}")
            continue
        collection.store.add(_rows([(document, content)], embedder))
        say(f"{line(document.source)}: its passages were missing in the store; they were embedded again")
    # Readers look again.
    collection.commit(catalogue.with_documents(()))


def _remarks(document: Document, old: Document | None, left_out: Mapping[Left, int]) -> str:
    said = [f"version {document.version} in place of {old.version}"] if old is not None else []
    said += [f"{count} x {kind} masked" for kind, count in document.personal_data.items()]
    said += [f"{count} x {what}" for what, count in left_out.items()]
    if document.quarantined:
        said.append(f"{_counted(len(document.quarantined), 'passage')} in quarantine")
    return f" ({', '.join(said)})" if said else ""


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + "s" * (count != 1)


def _forget_replaced(collection: Collection) -> None:
    """Old versions are not searched: their rows go, their texts stay."""
    counted = collection.store.counts()
    live = collection.catalogue().live()
    gone = {document for document in counted if document not in live}
    if gone:
        collection.store.remove(gone)
