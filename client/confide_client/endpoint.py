"""Ask a served model over HTTP: OpenAI's chat route, as text comes.

endpoint = Endpoint("http://127.0.0.1:8080/v1", key="confide-...")
for piece in endpoint.answer("support", [{"role": "user", "content": "Hello"}]): print(piece, end="")
"""

import http.client
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from confide.errors import TransportError
from confide.text import line

_SILENCE_S = 180.0
_MAX_LINE_BYTES = 1 << 22
_MAX_REPLY_BYTES = 1 << 24


@dataclass
class Citation:
    """What an answer rests on, as the endpoint says."""

    title: str
    url: str


@dataclass
class Endpoint:
    """One endpoint. url ends with /v1. ca: certificates to trust in place of the system's."""

    url: str
    key: str = ""
    ca: Path | None = None
    citations: list[Citation] = field(default_factory=list)
    """Of the last answer."""
    prose: str = ""
    """What the endpoint's model says of them in its own words. Nobody verified it."""

    def models(self) -> list[str]:
        """The names that the key may use. Raises TransportError."""
        with self._open("/models", None) as reply:
            document = _json(reply.read(_MAX_REPLY_BYTES))
        return [line(one.get("id"), 64) for one in _list(document.get("data")) if isinstance(one, dict)]

    def answer(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int = 256,
        temperature: float = 0.0,
        collections: Sequence[str] = (),
    ) -> Iterator[str]:
        """Pieces of the answer. Raises TransportError with what the endpoint said."""
        self.citations, self.prose = [], ""
        asked: dict[str, Any] = {
            "model": model,
            "messages": list(messages),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "stream": True,
        }
        if collections:
            asked["collections"] = list(collections)
        with self._open("/chat/completions", asked) as reply:
            for document in _events(reply):
                if "error" in document:
                    raise TransportError(f"the endpoint stopped: {_said(document)}")
                yield from self._pieces(document)

    def _pieces(self, document: Mapping[str, Any]) -> Iterator[str]:
        for choice in _list(document.get("choices")):
            delta = choice.get("delta") if isinstance(choice, dict) else None
            if not isinstance(delta, dict):
                continue
            if isinstance(delta.get("content"), str):
                yield delta["content"]
            if isinstance(delta.get("unverified_prose"), str):
                self.prose = delta["unverified_prose"]
            for note in _list(delta.get("annotations")):
                cited = note.get("url_citation") if isinstance(note, dict) else None
                if isinstance(cited, dict):
                    self.citations.append(Citation(line(cited.get("title"), 200), line(cited.get("url"), 500)))

    def _open(self, path: str, document: Mapping[str, Any] | None) -> http.client.HTTPResponse:
        url = self.url.rstrip("/") + path
        if not url.startswith(("http://", "https://")):
            raise TransportError(f"an endpoint's URL is http://... or https://...; got {line(self.url, 100)!r}")
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(url, body, headers)  # noqa: S310 - http and https only, as checked
        try:
            context = ssl.create_default_context(cafile=str(self.ca) if self.ca else None)
            opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _NoRedirect())
            reply: http.client.HTTPResponse = opener.open(request, timeout=_SILENCE_S)
        except urllib.error.HTTPError as error:
            with error:
                said = _said(_json(error.read(1 << 16), strict=False))
            raise TransportError(f"the endpoint refuses ({error.code}): {said}") from None
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise TransportError(f"the endpoint {line(url, 200)} cannot be reached: {line(error, 200)}") from error
        return reply


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The key goes to the endpoint that was named, and nowhere else."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _events(reply: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    while True:
        try:
            one = reply.readline(_MAX_LINE_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise TransportError(f"the endpoint broke off: {line(error, 200)}") from error
        if len(one) > _MAX_LINE_BYTES:
            raise TransportError("the endpoint sent a line without end")
        if not one:
            raise TransportError("the endpoint ended in mid-answer")
        data = one.strip()
        if data == b"data: [DONE]":
            return
        if data.startswith(b"data:"):
            yield _json(data[5:])


def _json(data: bytes, *, strict: bool = True) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if isinstance(document, dict):
        return document
    if strict:
        raise TransportError("the endpoint sent what is no JSON object; is its URL that of an OpenAI-compatible one?")
    return {}


def _list(found: object) -> list[Any]:
    return found if isinstance(found, list) else []


def _said(document: Mapping[str, Any]) -> str:
    error = document.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return line(message or "it does not say why", 500)
