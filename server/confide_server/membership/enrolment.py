"""Where enrolment requests wait at the coordinator for the root's answer. It decides nothing itself.

<name>.request.json  <name>.admission.json  <name>.fetched
"""

import hmac
import threading
from pathlib import Path

from confide.errors import IdentityError
from confide.files import private_folder, write_atomic
from confide.identity.enrolment import EnrolmentRequest, read_request

MAX_PENDING = 1000
_REQUEST, _ADMISSION = ".request.json", ".admission.json"


class EnrolmentQueue:
    """One folder of requests and admissions, by member name."""

    def __init__(self, folder: Path) -> None:
        """The folder is made where it is missing."""
        self._folder = private_folder(folder)
        self._lock = threading.Lock()

    def put_first(self, caller: str, data: bytes) -> None:
        """A new member's request. An invitation serves one request: another one is refused."""
        request = _of_caller(caller, data)
        with self._lock:
            path = self._request_path(request.name)
            if path.exists() and not hmac.compare_digest(path.read_bytes(), data):
                raise IdentityError(
                    f"the invitation of {caller} was used already, with another request; if that was not you, tell "
                    "the consortium's administrator, and ask for a new invitation under another name"
                )
            self._store(path, data)

    def put_renewal(self, caller: str, identity_key: str, data: bytes) -> None:
        """A member's request for a new certificate, which replaces the one before. Its identity key stays."""
        request = _of_caller(caller, data)
        if request.identity_key != identity_key:
            raise IdentityError(
                f"the renewal of {caller} is signed by the identity key {request.identity_key[:16]}; the roster says "
                f"{identity_key[:16]}. Make the renewal in the member's own folder."
            )
        with self._lock:
            path = self._request_path(request.name)
            if path.exists() and path.read_bytes() != data:
                self._admission_path(request.name).unlink(missing_ok=True)
            self._store(path, data)

    def pending(self) -> list[bytes]:
        """Requests without an answer, by name."""
        with self._lock:
            return [self._request_path(name).read_bytes() for name in self._unanswered()]

    def unanswered(self) -> dict[str, float]:
        """Since when each request without an answer lies here, Unix seconds by name."""
        with self._lock:
            return {name: self._request_path(name).stat().st_mtime for name in self._unanswered()}

    def unfetched(self) -> dict[str, float]:
        """Since when each admission lies here that nobody has fetched, Unix seconds by name."""
        with self._lock:
            names = (path.name.removesuffix(_ADMISSION) for path in sorted(self._folder.glob(f"*{_ADMISSION}")))
            lying = {name: self._admission_path(name) for name in names if not self._fetched_path(name).exists()}
            return {name: path.stat().st_mtime for name, path in lying.items()}

    def answer(self, name: str, admission: bytes) -> None:
        """Keep a verified admission until its member fetches it (and after that, as it is no secret)."""
        with self._lock:
            self._fetched_path(name).unlink(missing_ok=True)
            write_atomic(self._admission_path(name), admission)

    def admission(self, name: str) -> bytes:
        """The admission, which counts as fetched from now on; empty while there is none."""
        with self._lock:
            path = self._admission_path(name)
            if not path.exists():
                return b""
            self._fetched_path(name).touch()
            return path.read_bytes()

    def _unanswered(self) -> list[str]:
        names = (path.name.removesuffix(_REQUEST) for path in sorted(self._folder.glob(f"*{_REQUEST}")))
        return [name for name in names if not self._admission_path(name).exists()]

    def _store(self, path: Path, data: bytes) -> None:
        if not path.exists() and sum(1 for _ in self._folder.glob(f"*{_REQUEST}")) >= MAX_PENDING:
            raise IdentityError(f"{MAX_PENDING} enrolment requests lie here already; ask the administrator to clear")
        write_atomic(path, data)

    def _request_path(self, name: str) -> Path:
        return self._folder / f"{name}{_REQUEST}"

    def _admission_path(self, name: str) -> Path:
        return self._folder / f"{name}{_ADMISSION}"

    def _fetched_path(self, name: str) -> Path:
        return self._folder / f"{name}.fetched"


def _of_caller(caller: str, data: bytes) -> EnrolmentRequest:
    request = read_request(data)
    if request.name != caller:
        raise IdentityError(f"the request is for {request.name!r}, and the certificate is that of {caller!r}")
    return request
