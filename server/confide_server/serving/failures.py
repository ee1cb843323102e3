"""What is answered when a request is refused, in OpenAI's form: {"error": {message, type, param, code}}."""

import logging
from typing import Any

from confide.errors import ConfideError, DataError, RetryableError
from confide.text import paragraph
from fastapi.responses import JSONResponse

from confide_server.serving.port import EngineFailed, Overloaded, Unanswerable

log = logging.getLogger(__name__)
INVALID, DENIED, SERVER = "invalid_request_error", "permission_error", "server_error"


class Refused(ConfideError):
    """A request that is not answered, with its HTTP status and OpenAI's names for why."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.reason = status, kind, param, code
        self.retry_after_s = retry_after_s

    def document(self) -> dict[str, Any]:
        """The body."""
        message = paragraph(self)
        return {"error": {"message": message, "type": self.kind, "param": self.param, "code": self.reason}}

    def response(self) -> JSONResponse:
        """The answer."""
        headers = {} if self.retry_after_s is None else {"Retry-After": str(max(1, round(self.retry_after_s)))}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.document(), self.status, headers)


def as_refused(error: Exception) -> Refused:
    """How an error is told to who asked. What is not meant for people is told by its kind only."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, Overloaded):
        return Refused(429, str(error), kind="rate_limit_error", code="overloaded", retry_after_s=error.retry_after_s)
    if isinstance(error, Unanswerable):
        return Refused(400, str(error), param=error.param, code=error.kind)
    if isinstance(error, DataError):
        return Refused(400, str(error), param="messages")
    if isinstance(error, EngineFailed):
        return Refused(503, str(error), kind=SERVER, code="engine_failed", retry_after_s=5.0)
    if isinstance(error, ConfideError):  # for the operator: it names databases, folders and hosts
        log.error("%s", error)
        said = "this server cannot answer now; its log says why"
        if isinstance(error, RetryableError):
            return Refused(503, said, kind=SERVER, code=error.code, retry_after_s=5.0)
        return Refused(500, said, kind=SERVER, code=error.code)
    return Refused(500, "this server failed on the request; its log says more", kind=SERVER, code="internal")
