"""console.json: how the console listens, under which addresses it is reached, and how long a session lasts."""

import json
from pathlib import Path
from typing import Annotated

from confide import canonical
from confide.errors import IdentityError, StateError
from confide.files import write_atomic
from confide.identity.signed import Document, validated
from pydantic import Field

from confide_server.alerts.settings import Alerts

Text = Annotated[str, Field(max_length=500)]


class Provider(Document):
    """An OpenID provider at which people sign in instead of with a password here. It vouches for the second factor."""

    issuer: Text
    """https://..., as its discovery document says."""
    client_id: Text
    client_secret_file: Text
    """A file that only the console's user reads."""
    label: Annotated[str, Field(max_length=60)] = "OpenID"


class KnowledgeSettings(Document):
    """A library of documents (`confide rag`) that this console shows, each organization its own."""

    library: Text
    """The folder of all collections."""
    embedder: Text
    """The model folder that embedded them."""
    reranker: Text = ""
    """The cross-encoder's folder, for collections that were calibrated with one."""
    organization: Annotated[str, Field(max_length=64)] = ""
    """Whose collections people of the consortium itself see; empty: none. An organization's people see their own."""


class Settings(Document):
    """Everything has a default that is safe: loopback without TLS."""

    bind: Annotated[str, Field(max_length=64)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 9444
    hosts: tuple[Annotated[str, Field(max_length=253)], ...] = ()
    """Names under which browsers reach it, without port; loopback's names where none are given."""
    certificate: Text = ""
    """PEM file; with `key` it makes the port TLS. Needed for any address but loopback."""
    key: Text = ""
    idle_s: Annotated[float, Field(ge=60.0, le=86400.0)] = 1800.0
    absolute_s: Annotated[float, Field(ge=300.0, le=604800.0)] = 43200.0
    coordinator: Text = ""
    """host:port of the control service; the admission's where it is empty."""
    provider: Provider | None = None
    knowledge: KnowledgeSettings | None = None
    alerts: Alerts | None = None
    """Who is told when the coordinator does not answer (docs/alerts.md); None: nobody."""


def read_settings(folder: Path) -> Settings:
    """The folder's console.json, defaults where there is none. Raises StateError."""
    path = folder / "console.json"
    if not path.exists():
        return Settings()
    try:
        return validated(Settings, json.loads(path.read_bytes()), str(path))
    except (OSError, ValueError, IdentityError) as error:
        raise StateError(f"{path} cannot be used: {error}; correct it, or remove it for the defaults") from error


def write_settings(folder: Path, settings: Settings) -> None:
    """Write console.json."""
    write_atomic(folder / "console.json", canonical.encode(settings.model_dump(mode="json")))
