"""Data sets of this node: registered by name and path, split once, and never sent anywhere.

`datasets.json` of the state folder holds, per name, where the file lies, what it held when it was registered, and
the secret seed of the split into training and evaluation records. The split is the node's: nobody else chooses or
learns it.

>>> import tempfile; folder = Path(tempfile.mkdtemp()); file = folder / "faq.jsonl"
>>> _ = file.write_text("".join(f'{{"prompt": "q{i}", "completion": "a{i}"}}\\n' for i in range(10)))
>>> registry = DataSets(folder / "state")
>>> registry.add("faq", file, evaluation_fraction=0.2).records
10
>>> local = registry.load("faq")
>>> len(local.train), len(local.evaluation), sorted(local.train[0])
(8, 2, ['completion', 'prompt'])
"""

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from confide import canonical
from confide.documents import StoredDocument
from confide.errors import DataError, StateError
from confide.files import private_folder, sha256_file, write_atomic
from confide.runs.sections import Name, Sha256
from confide.text import PARAGRAPH_CHARS, line
from pydantic import Field, ValidationError

from confide_client.data import readers, token_files
from confide_client.data.readers import FORMATS, Format, format_of
from confide_client.data.rows import Rows, open_rows

Record = readers.Record


@dataclass(frozen=True)
class LocalData:
    """What local training sees of a data set: records as dictionaries, in the file's order within each split."""

    train: Sequence[Record]
    evaluation: Sequence[Record]
    digest: str = ""
    """Of the file and the split that they were read from, as DataSets.load checked them; "" where nobody did."""


class DataSet(StoredDocument):
    """One registered data set. Everything here stays on the node."""

    path: str
    format: Literal["jsonl", "csv", "parquet", "txt"]
    sha256: Sha256
    """Of the file when it was registered: a file that changed is refused until it is registered again."""
    records: int = Field(ge=1)
    fields: tuple[str, ...]
    evaluation_fraction: float = Field(ge=0, lt=1)
    split_seed: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    group: Name
    """Data sets that share records carry one group name: privacy is counted per group."""
    registered_at: int

    @property
    def evaluation_records(self) -> int:
        """How many records are kept from training."""
        if self.evaluation_fraction == 0 or self.records < 2:
            return 0
        return min(self.records - 1, max(1, round(self.records * self.evaluation_fraction)))

    @property
    def digest(self) -> str:
        """Of what decides which records there are, and which of them are trained on."""
        decides = {"sha256", "format", "records", "evaluation_fraction", "split_seed"}
        return canonical.digest(self.model_dump(mode="json", include=decides))

    def split(self) -> tuple[list[int], list[int]]:
        """(training, evaluation) record numbers, each ascending: the same for as long as the registration stands."""
        seed = bytes.fromhex(self.split_seed)
        hashes = (hashlib.blake2b(i.to_bytes(8, "big"), key=seed).digest() for i in range(self.records))
        # Of each hash its first eight bytes, to hold little of many records.
        ranks = np.fromiter((int.from_bytes(one[:8], "big") for one in hashes), np.uint64, self.records)
        shuffled = np.argsort(ranks, kind="stable")
        kept = self.evaluation_records
        return np.sort(shuffled[kept:]).tolist(), np.sort(shuffled[:kept]).tolist()


class _Registry(StoredDocument):
    version: Literal[1]
    data_sets: dict[Name, DataSet]


class DataSets:
    """The register of one node. `folder` is the node's state folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "datasets.json"

    def all(self) -> dict[str, DataSet]:
        """Every registered data set by name, sorted."""
        if not self._path.exists():
            return {}
        try:
            registry = _Registry.model_validate_json(self._path.read_bytes())
        except ValidationError as error:
            raise StateError(
                f"{self._path} is damaged ({error.error_count()} faults). Restore it, or remove it and register the "
                "data sets again with `confide data add`."
            ) from error
        return dict(sorted(registry.data_sets.items()))

    def get(self, name: str) -> DataSet:
        """One data set. Raises DataError when the name is unknown."""
        found = self.all().get(name)
        if found is None:
            raise DataError(f"no data set {name!r} is registered on this node; its operator runs `confide data add`")
        return found

    def add(
        self,
        name: str,
        path: Path,
        *,
        format: Format | None = None,
        evaluation_fraction: float = 0.1,
        group: str | None = None,
        split_seed: str | None = None,
    ) -> DataSet:
        """Check every record of the file, draw its split, and remember it durably under `name`.

        A registration of the same unchanged file keeps its split. group: of privacy budgets; default the one that the
        data set or, under another name, the same file has already, else `name`. split_seed: 64 hex characters that fix
        the split, for a simulation that is to be repeated. Raises DataError naming line and remedy.
        """
        path = path.expanduser().resolve()
        format = format or format_of(path)
        records, fields = _survey(path, format)
        digest = sha256_file(path)
        known = self.all()
        before = known.get(name)
        shared = next((entry.group for entry in known.values() if entry.sha256 == digest), name)
        kept = before.split_seed if before and before.sha256 == digest else secrets.token_hex(32)
        seed = split_seed or kept
        try:
            entry = DataSet(
                path=str(path),
                format=format,
                sha256=digest,
                records=records,
                fields=fields,
                evaluation_fraction=evaluation_fraction,
                split_seed=seed,
                group=group or (before.group if before else shared),
                registered_at=int(time.time()),
            )
            registry = _Registry(version=1, data_sets={**known, name: entry})
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()[:4])
            raise DataError(f"cannot register {name!r}: {faults}") from error
        private_folder(self._folder)
        write_atomic(self._path, canonical.encode(registry.model_dump(mode="json")))
        if before and before.sha256 != digest:
            self._forget()
        return entry

    def remove(self, name: str) -> None:
        """Forget a data set and the node's copy of it; its file stays where it is."""
        self.get(name)
        registry = _Registry(version=1, data_sets={key: value for key, value in self.all().items() if key != name})
        write_atomic(self._path, canonical.encode(registry.model_dump(mode="json")))
        self._forget()

    def check(self, name: str) -> DataSet:
        """Read the whole file again and compare it with its registration. Raises DataError."""
        entry = self._unchanged(name)
        records, fields = _survey(Path(entry.path), entry.format)
        if (records, fields) != (entry.records, entry.fields):
            raise DataError(f"data set {name!r} reads differently than when it was registered; register it again")
        return entry

    def load(self, name: str) -> LocalData:
        """Training and evaluation records of a registered data set. Raises DataError without naming its path."""
        entry = self._unchanged(name)
        self._forget_copies()
        rows = _rows(name, entry)
        if len(rows) != entry.records:
            raise DataError(f"data set {name!r} has {len(rows)} records; {entry.records} were registered")
        train, evaluation = entry.split()
        return LocalData(train=rows.select(train), evaluation=rows.select(evaluation), digest=entry.digest)

    def _forget(self) -> None:
        """Copies of its text. Of other data sets only what is made again is lost: which run has which is not known."""
        self._forget_copies()
        for training in (self._folder / "runs").glob("*/training"):
            token_files.erase(training)

    def _forget_copies(self) -> None:
        """That earlier releases made of the files; records are read from the files themselves now."""
        shutil.rmtree(self._folder / "cache" / "datasets", ignore_errors=True)

    def _unchanged(self, name: str) -> DataSet:
        entry = self.get(name)
        try:
            digest = sha256_file(Path(entry.path))
        except OSError as error:
            raise DataError(
                f"the file of data set {name!r} cannot be read: {error.strerror}. Put it back or register another."
            ) from error
        if digest != entry.sha256:
            raise DataError(
                f"the file of data set {name!r} changed since it was registered; run `confide data add` again, so that "
                "its split is drawn for what it holds now"
            )
        return entry


def _survey(path: Path, format: Format) -> tuple[int, tuple[str, ...]]:
    """(number of records, field names in order of appearance); raises DataError for the first bad record."""
    fields: dict[str, None] = {}
    records = 0
    for record in _checked(path, format):
        records += 1
        fields.update(dict.fromkeys(record))
    if records == 0:
        raise DataError(f"{path} holds no records; a data set needs at least one")
    return records, tuple(fields)


def _rows(name: str, entry: DataSet) -> Rows:
    try:
        return open_rows(Path(entry.path), entry.format)
    except DataError as error:
        # Registered by a release that read more: the reason names the path, which must not leave.
        raise DataError(f"data set {name!r} cannot be read as {entry.format}; run `confide data check`") from error
    except OSError as error:
        raise DataError(f"the file of data set {name!r} cannot be read: {error.strerror}") from error


def _checked(path: Path, format: Format) -> Iterator[Record]:
    if not path.is_file():
        raise DataError(f"{path} is not a file; give the path of a {', '.join(FORMATS)} file")
    try:
        yield from FORMATS[format](path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}. Correct its rights or give another file.") from error


def describe(name: str, entry: DataSet) -> str:
    """One line for the operator."""
    fields = json.dumps(list(entry.fields), ensure_ascii=False)
    return line(
        f"{name}: {entry.records - entry.evaluation_records} training and {entry.evaluation_records} evaluation "
        f"records, fields {fields}, {entry.format}, group {entry.group}, {entry.path}",
        PARAGRAPH_CHARS,
    )
